"""Families of models: a tiny random model of each, trained by Loratory and read by PEFT alone.

``python tests/models/families.py``, with ``src``, ``tests`` and ``tests/text`` on the path, writes what is found to
``docs/families.json``, from which docs/generate.py makes the table in docs/models.md.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from peft import PeftModel
from test_templates import DATA, from_model_folder, loaded
from torch import Tensor

from loratory.bases.known import SHORT_NAMES
from loratory.bases.places import place_of
from loratory.config import Config
from loratory.data.examples import Message
from loratory.errors import UserError
from loratory.events import ignore_event, ignore_progress
from loratory.models.loading import load_tokenizer
from loratory.predict.tokens import token_records
from loratory.run.job import Job
from loratory.run.opening import open_job
from loratory.run.training import save_trained, train_one, with_fresh_adapter
from loratory.settings import ModelConfig
from loratory.text.renderer import PROBE, Renderer
from loratory.text.rendering import render_prompt, template_deviation
from loratory.text.template import apply_template, check_system_is_shown
from loratory.tree.generation import decode_answer, generate, greedy_settings, pad_id_of

RECORD = Path(__file__).parents[2] / "docs" / "families.json"
TOLERANCE = 1e-5  # of the largest logit: LoRA branches are computed in another order by PEFT
RATE = 1e-2
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 4.0],
    "original_max_position_embeddings": 512, "partial_rotary_factor": 0.75,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "truncate": False, "original_max_position_embeddings": 256,
}  # fmt: skip
QWEN3_5 = {
    **SMALL, "num_hidden_layers": 4, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
VISION3_5 = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
    "num_position_embeddings": 16,
}  # fmt: skip
# Written after the published templates, which are not at hand, for messages that are texts.
PHI_4 = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt else eos_token }}"
)
OLMO_2 = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' }}{{ '\n' if m.role != 'assistant' or not loop.last }}{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt }}"
)
OLMO_3 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Olmo.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' and loop.last else '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
SMOLLM_3 = (
    "{% set thinks = enable_thinking is not defined or enable_thinking %}{% set first = messages[0] %}"
    "<|im_start|>system\n## Metadata\n\nReasoning Mode: {{ '/think' if thinks else '/no_think' }}\n\n"
    "## Custom Instructions\n\n{{ first.content if first.role == 'system' else 'You are SmolLM.' }}\n\n<|im_end|>\n"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{{ '<think>\n\n</think>\n' if m.role == 'assistant' and not thinks }}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '<think>\n\n</think>\n' if not thinks }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A tiny model of a family, and whose tokenizer and template it has."""

    models: str
    """Real models of the family."""
    config: Callable[..., Any]
    """The configuration of the tiny model, without the sizes and ids that its tokenizer decides."""
    text: str
    """Where tokenizer and template come from: a name in the table of templates, or the short name of a known model."""
    vocabulary: str = ""
    """Whose it is, if it is not the family's."""
    template: str | None = None
    """The template, if it is none of those at hand."""
    special: tuple[str, ...] = ()
    """The family's special tokens that the tokenizer lacks: beginning, end, and others."""
    beyond: str | None = None
    """A last token, for which the model has no embedding."""
    stops: tuple[str, ...] = ()
    """The stop tokens in the generation config of a model whose template is written here."""
    arguments: str = ""
    """The entries of ``prompt.template_kwargs``."""
    notes: tuple[str, ...] = ()

    @property
    def is_masked(self) -> bool:
        return self.config().model_type in ("bert", "roberta", "modernbert")


def _of(name: str, **settings: Any) -> Callable[..., Any]:
    """A function that makes the configuration of a class in Transformers."""
    return lambda **others: getattr(transformers, name)(**{**SMALL, **settings, **others})


FAMILIES = {
    "Llama 3": Family(
        "Llama 3.1, 3.2", _of("LlamaConfig", rope_parameters=LLAMA3_ROPE), "tokenizers/llama-3.2-instruct"
    ),
    "Qwen 2.5": Family("Qwen2.5-0.5B-Instruct", _of("Qwen2Config"), "tokenizers/qwen2.5-instruct"),
    "Qwen 3": Family("Qwen3-0.6B", _of("Qwen3Config", head_dim=8), "trl/qwen3", "Qwen 2.5",
                     arguments="enable_thinking = false"),
    "Qwen 3.5": Family("Qwen3.5-0.8B", lambda **more: transformers.Qwen3_5Config(
        text_config={**QWEN3_5, **more}, vision_config=VISION3_5), "trl/qwen3_5_nothink", "Qwen 2.5"),
    "Gemma 2": Family("gemma-2-2b-it", _of("Gemma2Config", head_dim=8, query_pre_attn_scalar=8, **WINDOWS),
                      "trl/gemma", "Qwen 2.5"),
    "Gemma 3": Family("gemma-3-270m-it, gemma-3-1b-it", _of("Gemma3TextConfig", head_dim=8, **WINDOWS), "trl/gemma3",
                      "Qwen 2.5", beyond="<image_soft_token>",
                      notes=("The tokenizer has a token for images without an embedding; a text with it is an error",)),
    "Gemma 3 with images": Family("gemma-3-4b-it", lambda **more: transformers.Gemma3Config(
        text_config={**SMALL, "head_dim": 8, **WINDOWS, **more}, vision_config=VISION, mm_tokens_per_image=4),
        "trl/gemma3", "Qwen 2.5"),
    "SmolLM2": Family("SmolLM2-135M-Instruct", _of("LlamaConfig"), "smollm2-135m",
                      notes=("Also tested with its real weights",)),
    "SmolLM3": Family("SmolLM3-3B", _of("SmolLM3Config", no_rope_layers=[1, 0]), "tokenizers/llama-3.2-instruct",
                      "Llama 3.2", SMOLLM_3, ("<|im_start|>", "<|im_end|>"),
                      stops=("<|im_end|>",), arguments="enable_thinking = false"),
    "Phi 3": Family("Phi-3.5-mini-instruct", _of("Phi3Config", num_key_value_heads=4), "tokenizers/phi-3.5-mini"),
    "Phi 4": Family("Phi-4-mini-instruct", _of("Phi3Config", rope_parameters=LONG_ROPE, sliding_window=1024),
                    "tokenizers/qwen2.5-instruct", "Qwen 2.5", PHI_4,
                    ("<|endoftext|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
                    stops=("<|end|>", "<|endoftext|>"),
                    notes=("The architecture is that of Phi 3",
                           "With sequences of more than 4,096 tokens, all are computed one by one")),
    "Mistral": Family("Mistral-7B-Instruct-v0.3", _of("MistralConfig", sliding_window=16),
                      "chat_templates/mistral-instruct", "Llama 2",
                      notes=("The template is a short one by the community",)),
    "OLMo 2": Family("OLMo-2-0425-1B-Instruct", _of("Olmo2Config"), "tokenizers/gpt2", "GPT-2", OLMO_2,
                     ("<|endoftext|>", "<|endoftext|>"), stops=("<|endoftext|>",)),
    "OLMo 3": Family("Olmo-3-7B-Instruct", _of("Olmo3Config", **WINDOWS), "tokenizers/gpt2", "GPT-2", OLMO_3,
                     ("<|endoftext|>", "<|im_end|>", "<|im_start|>"), stops=("<|im_end|>", "<|endoftext|>")),
    "Granite": Family("granite-3.3-2b-instruct", _of("GraniteConfig", embedding_multiplier=12.0,
        attention_multiplier=0.125, residual_multiplier=0.22, logits_scaling=8.0),
        "chat_templates/granite-3.0-instruct", "GPT-2", notes=("With the template of Granite 3.0",)),
    "gpt-oss": Family("gpt-oss-20b", _of("GptOssConfig", head_dim=8, num_local_experts=4, num_experts_per_tok=2,
        rope_parameters=YARN, **WINDOWS), "trl/gptoss", "Qwen 2.5",
        notes=("Experts and routers get no LoRA", "Published with weights in 4 bits: use a copy in bfloat16")),
    "BERT": Family("bert-base-uncased", _of("BertConfig"), "tokenizers/bert-base-uncased"),
    "RoBERTa": Family("roberta-base", _of("RobertaConfig"), "tokenizers/gpt2", "GPT-2",
                      special=("<s>", "<pad>", "</s>", "<mask>")),
    "ModernBERT": Family("ModernBERT-base", _of("ModernBertConfig", num_hidden_layers=3, local_attention=8,
        global_attn_every_n_layers=3), "tokenizers/gpt2", "GPT-2", special=("[CLS]", "[PAD]", "[SEP]", "[MASK]")),
}  # fmt: skip


# ---- the model -------------------------------------------------------------------------------------------------------


def is_at_hand(family: Family) -> bool:
    return DATA.exists() and (family.text not in SHORT_NAMES or place_of(SHORT_NAMES[family.text]).is_here)


def write_base(family: Family, folder: Path) -> Path:
    """Writes the model's folder as the hub would give it."""
    tokenizer, stops = _tokenizer(family)
    count = len(tokenizer)
    if family.beyond:
        tokenizer.add_tokens([family.beyond], special_tokens=True)
    ids = {f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "pad")}
    config = family.config(vocab_size=count, **ids)
    kind = transformers.AutoModelForMaskedLM if family.is_masked else getattr(transformers, _architecture(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind.from_config(config) if family.is_masked else kind(config)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "norm" not in name.lower():
                    parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if stops:
        transformers.GenerationConfig(eos_token_id=list(stops)).save_pretrained(folder)
    return folder


def _architecture(config: Any) -> str:
    """The class by which models of this kind are published."""
    if config.model_type == "qwen3_5":
        return "Qwen3_5ForConditionalGeneration"
    return transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__


def _tokenizer(family: Family) -> tuple[Any, tuple[int, ...]]:
    """The tokenizer with its template, and the stop ids of the generation config."""
    if family.text in SHORT_NAMES:
        text = load_tokenizer(ModelConfig(family.text))
        return text.tokenizer, text.stop_ids
    if family.is_masked and family.special:
        return _bidirectional(family), ()
    if not family.text.startswith("tokenizers/"):
        return loaded(family.text)
    text = from_model_folder.__wrapped__(family.text.removeprefix("tokenizers/"))  # not the shared one: it is changed
    if not family.template:
        return text.tokenizer, text.stop_ids
    tokenizer: Any = text.tokenizer
    bos, eos = family.special[:2]
    tokenizer.add_tokens(sorted({*family.special} - {*tokenizer.get_vocab()}), special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = bos, eos, family.template
    return tokenizer, tuple(tokenizer.convert_tokens_to_ids(list(family.stops)))


def _bidirectional(family: Family) -> Any:
    """GPT-2's vocabulary with the special tokens of a masked language model before it, which begin and end each text.

    They come first as in RoBERTa, where positions are numbered from the padding token's id.
    """
    read = json.loads((DATA / family.text / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [*family.special, *sorted(read["model"]["vocab"], key=read["model"]["vocab"].__getitem__)]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in read["model"]["merges"]]
    core = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    start, pad, end, mask = family.special
    core.add_special_tokens([start, pad, end, tokenizers.AddedToken(mask, lstrip=True)])
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(token, core.token_to_id(token)) for token in (start, end)]
    )
    names = {"bos_token": start, "cls_token": start, "eos_token": end, "sep_token": end}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token=pad, mask_token=mask, **names)


# ---- what is found ---------------------------------------------------------------------------------------------------


def findings(name: str, folder: Path, base: Path | None = None) -> dict[str, Any]:
    """Takes a family through loading, rendering, two steps, saving and PEFT. Raises AssertionError if one is wrong.

    ``base`` is the folder of a real model of the family, instead of a tiny one.
    """
    family = FAMILIES[name]
    base = base or write_base(family, folder / "base")
    task = _write_task(family, base, folder)
    with open_job(Config.parse(task.read_text(), task), ignore_event, False, False, lambda job: (job, {})) as job:
        _check_rendered(job, family)
        found = {
            "models": family.models,
            "class": type(job.base.model).__name__,
            "batches": job.layout.kind,
            "system": _system(job.renderer),
            "stop": job.renderer.tokenizer.convert_ids_to_tokens(list(job.renderer.ending[-1:])),
            "notes": _notes(family, job),
        }
        _check_trained_and_reloaded(job, base, family)
    return found


def _notes(family: Family, job: Job) -> list[str]:
    notes = []
    if family.vocabulary:
        notes.append(f"Tested with the vocabulary of {family.vocabulary}")
    if family.template:
        notes.append("The template was written after the published one")
    if family.arguments:
        notes.append(f"With `template_kwargs = {{ {family.arguments} }}`")
    if not family.is_masked and (deviation := template_deviation(job.renderer)):
        notes.append(deviation)
    if not job.layout.share:
        notes.append(job.layout.reason[0].upper() + job.layout.reason[1:])
    return [*notes, *job.base.notes, *family.notes]


def _write_task(family: Family, base: Path, folder: Path) -> Path:
    """A task of eight questions, trained in two steps; test questions are only there to be read."""
    for file, place in (("train.csv", "field"), ("test.csv", "barn")):
        rows = [f"in {place} {i} we hear {('a moo', 'a meow')[i % 2]},{('cow', 'cat')[i % 2]}" for i in range(8)]
        (folder / file).write_text("\n".join(["text,animal", *rows]))
    user = "{text}: it is the {mask}." if family.is_masked else "{text}"
    (folder / "task.toml").write_text(f"""
[model]
name = '{base}'
device = "cpu"
dtype = "float32"
encoder = "none"
[data]
train = "train.csv"
test = "test.csv"
answer = "animal"
[prompt]
user = "{user}"
date = "2025-01-01"
template_kwargs = {{ {family.arguments} }}
[adapter]
rank = 4
[train]
epochs = 2
batch_size = 64
learning_rate = {RATE}
schedule = "constant"
warmup = 0.0
keep = "last"
[run]
out = '{folder / "run"}'
threads = 1
""")
    return folder / "task.toml"


def _check_rendered(job: Job, family: Family) -> None:
    """What ``loratory show`` marks as trained is the answer and the ending; its last token, and no other, stops."""
    renderer = job.renderer
    for [sequence], example in zip(job.train_sequences, job.split.train, strict=True):
        trained = [token for token in token_records(sequence, renderer) if token["trained"]]
        text = "".join(token["text"] for token in trained)
        if renderer.is_masked_lm:
            assert text.strip() == example.answers[0]
            continue
        assert text == renderer.leading_space + example.answers[0] + renderer.ending_text
        assert [token["id"] in renderer.stop_ids for token in trained] == [False] * (len(trained) - 1) + [True]
    if family.beyond:
        with pytest.raises(UserError, match="no embedding"):
            render_prompt([Message("user", f"see {family.beyond}")], renderer)


def _system(renderer: Renderer) -> str:
    """What becomes of a system message; empty for masked language models, which take none."""
    if renderer.is_masked_lm:
        return ""
    try:
        check_system_is_shown(renderer)
    except UserError as error:
        return f"error: {error.fix}"
    system, user = Message("system", PROBE["system"]), Message("user", PROBE["user"])
    joined = Message("user", f"{system.content}\n\n{user.content}")
    one_turn = apply_template(renderer, [system, user], True) == apply_template(renderer, [joined], True)
    return "in the user's turn" if one_turn else "shown"


def _check_trained_and_reloaded(job: Job, base: Path, family: Family) -> None:
    """Two steps change the model, and PEFT alone makes the same model of the files."""
    kind = transformers.AutoModelForMaskedLM if family.is_masked else transformers.AutoModelForCausalLM
    [[sequence], *_] = job.train_sequences
    ids = sequence.token_ids if sequence.masked_ids is None else sequence.masked_ids
    before = _logits(job.base.model, ids)
    model = with_fresh_adapter(job)
    steps: list[Any] = []
    train_one(job, model, RATE, lambda event: steps.append(event) if event.kind == "step" else None)
    assert len(steps) == 2
    trained = _logits(model.eval(), ids)
    assert _difference(trained, before) > 100 * TOLERANCE, "a model that has not changed would prove nothing"
    model = save_trained(job, model)
    assert torch.equal(_logits(model, ids), trained)
    plain = kind.from_pretrained(base, dtype=torch.float32)
    again = PeftModel.from_pretrained(plain, str(job.run / "adapter")).eval()
    assert _difference(_logits(again, ids), trained) < TOLERANCE
    assert f"`{type(plain).__name__}`" in (job.run / "adapter" / "README.md").read_text()
    if not family.is_masked:
        _check_answers(job, model, again)


def _check_answers(job: Job, model: Any, plain: Any) -> None:
    """Greedy answers, which Loratory generates together, are those that PEFT generates one by one."""
    prompts = [render_prompt(example.messages, job.renderer).token_ids for example in job.split.test[:3]]
    found = generate(model, prompts, job.renderer, 6, 4096, ignore_progress)
    settings = greedy_settings(job.renderer.stop_ids, pad_id_of(job.renderer), 6)
    for prompt, answer in zip(prompts, found, strict=True):
        whole = plain.generate(torch.tensor(prompt)[None], generation_config=settings)[0]
        assert decode_answer(whole[len(prompt) :].tolist(), job.renderer) == answer


@torch.no_grad()
def _logits(model: Any, ids: Any) -> Tensor:
    return model(input_ids=torch.tensor(ids)[None]).logits[0]


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, in units of the largest logit."""
    return float((one - other).abs().max() / other.abs().max())


def recorded() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


if __name__ == "__main__":
    record = recorded() if RECORD.exists() else {}  # families that are not at hand keep their findings
    for name, family in FAMILIES.items():
        if is_at_hand(family):
            with tempfile.TemporaryDirectory() as folder:
                record[name] = findings(name, Path(folder))
            print(name)
    text = json.dumps({name: record[name] for name in FAMILIES if name in record}, indent=1, ensure_ascii=False)
    RECORD.write_text(text + "\n", encoding="utf-8")
