"""Masked language models: masked tokens, packed batches, whole runs."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from conftest import VOCABULARY
from test_finetune import predictions
from tiny import gradients

from loratory.cli.main import main
from loratory.config import Config
from loratory.data.examples import Example, Message
from loratory.data.prompts import ANSWER_SLOT
from loratory.data.splits import load_split
from loratory.data.task_file import guess_task_file
from loratory.errors import UserError
from loratory.evaluation.systems import _restore_spelling
from loratory.finetune import finetune
from loratory.machine.device import resolve_machine
from loratory.models.finding import builtin_folder
from loratory.models.loading import LoadedTokenizer, is_masked, load_model
from loratory.predict.tuned import load
from loratory.run.checks import check_model_kind, check_words
from loratory.settings import AdapterConfig, DataConfig, ModelConfig, PromptConfig, RunConfig, SpeedConfig, TrainConfig
from loratory.text import masking as cloze
from loratory.text.context import fit_to_context
from loratory.text.rendering import TokenizedExample, token_texts, tokenize, tokenizer_round_trip, with_mask_count
from loratory.text.template import renderer_for
from loratory.tree.batches import build_batch, micro_batches, sequences_of_epoch
from loratory.tree.fill_mask import fill_masks, fill_slots
from loratory.tree.forward import prepared, prepared_for_training
from loratory.tree.layout import Layout
from loratory.tree.loss import batch_loss, target_log_probs
from loratory.tree.scoring import label_log_probs
from loratory.tree.verification import choose_layout

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_hidden_layers": 2, "max_position_embeddings": 80, "pad_token_id": 1,
}  # fmt: skip
FAMILIES = {
    "bert": lambda: transformers.BertConfig(**SMALL),
    "roberta": lambda: transformers.RobertaConfig(**SMALL),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_heads=4, n_layers=2, max_position_embeddings=80, pad_token_id=1
    ),
    # Its local attention layers see two tokens to each side.
    "modernbert": lambda: transformers.ModernBertConfig(
        **{**SMALL, "num_hidden_layers": 3}, local_attention=4, global_attn_every_n_layers=3, cls_token_id=None,
        sep_token_id=None, bos_token_id=None, eos_token_id=None,
    ),
    # Its attention does not use the attention interface, so padded batches are used.
    "deberta": lambda: transformers.DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
}  # fmt: skip
MASK_ID = 3
TOLERANCE = {"modernbert": 1e-7}  # its rotary angles are float32


@functools.cache
def tiny(family: str) -> transformers.PreTrainedModel:
    """A random float64 model with weights large enough for attention to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForMaskedLM.from_config(FAMILIES[family]()).to(torch.float64)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "norm" not in name.lower():
                    parameter.normal_(0, 0.15)
    return model.eval()


def hidden(ids: list[int], at: list[int]) -> TokenizedExample:
    """A sequence with the tokens ``at`` masked."""
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[at] = 1
    shown = np.array(ids, dtype=np.int64)
    shown[at] = MASK_ID
    spans = np.zeros((len(ids), 2), dtype=np.int64)
    return TokenizedExample(np.array(ids, dtype=np.int64), weights, "", spans, "test", shown)


def some_sequences() -> list[TokenizedExample]:
    """Sequences of different lengths, of which two have the same input but different targets."""
    draw = np.random.default_rng(0)
    found = [hidden(draw.integers(4, VOCABULARY, n).tolist(), [n // 2, n - 1]) for n in (5, 23, 9, 40, 12)]
    same = draw.integers(4, VOCABULARY, 14).tolist()
    other = [*same]
    other[6] = 5
    return [*found, hidden(same, [6]), hidden(other, [6])]


def one_by_one(model, sequences) -> tuple[float, dict[str, torch.Tensor]]:
    """Summed cross-entropy of masked tokens and its gradients, one plain forward pass per sequence."""
    loss = 0.0
    for s in sequences:
        logits = model(input_ids=torch.from_numpy(s.masked_ids)[None]).logits[0]
        own = torch.from_numpy(s.loss_weights > 0)
        part = torch.nn.functional.cross_entropy(logits[own], torch.from_numpy(s.token_ids)[own], reduction="sum")
        part.backward()
        loss += part.item()
    return loss, gradients(model)


@pytest.mark.parametrize("budget", [30, 1000])
@pytest.mark.parametrize("batching", ["auto", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_have_the_same_loss_and_gradients_as_the_sequences_one_by_one(family, batching, budget):
    model, sequences = tiny(family), some_sequences()
    layout = choose_layout(model, sequences, batching)
    assert layout.kind == ("packed" if batching == "auto" and family != "deberta" else "padded"), layout.reason
    assert layout.first_position == (2 if layout.kind == "packed" and family == "roberta" else 0)
    expected, expected_gradients = one_by_one(model, sequences)
    loss = 0.0
    with prepared(model, layout):
        for batch in micro_batches(sequences, budget, layout.share):
            part = batch_loss(model, batch, layout).total
            part.backward()
            loss += part.item()
    found = gradients(model)
    assert loss == pytest.approx(expected, rel=1e-10)
    largest = max(g.abs().max().item() for g in expected_gradients.values())
    assert largest > 1e-3
    for name, gradient in expected_gradients.items():
        assert (found[name] - gradient).abs().max() <= TOLERANCE.get(family, 1e-12) * largest, name


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_packed_batch_gives_each_sequence_its_own_log_probabilities(family):
    model, sequences = tiny(family), some_sequences()
    layout = choose_layout(model, sequences, "auto")
    batch = build_batch(sequences)
    with torch.no_grad(), prepared(model, layout):
        found = target_log_probs(model, batch, layout)
    for i, s in enumerate(sequences):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(s.masked_ids)[None]).logits[0].log_softmax(-1)
        at = np.flatnonzero(s.loss_weights)
        assert torch.allclose(found[batch.target_sequence_N == i], logits[at, s.token_ids[at]], rtol=0, atol=1e-12)


def test_sequences_with_the_same_input_are_packed_once():
    sequences = some_sequences()
    [batch] = micro_batches(sequences, 1000, True)
    assert len(batch.token_ids_T) == sum(len(s.token_ids) for s in sequences[:-1])
    assert len(batch.target_ids_N) == sum(int(s.loss_weights.sum()) for s in sequences)


def test_verification_detects_attention_across_sequences_from_one_text(monkeypatch):
    from loratory.tree import attention

    chunks = attention._chunks

    def seeing_all(groups, end, *rest):
        return chunks(groups, torch.full_like(end, len(end)), *rest)

    assert choose_layout(tiny("bert"), some_sequences()[:1], "auto").kind == "packed"
    monkeypatch.setattr(attention, "_chunks", seeing_all)
    layout = choose_layout(tiny("bert"), some_sequences()[:1], "auto")
    assert layout.kind == "padded" and "reach another" in layout.reason


def test_verification_detects_wrong_positions(monkeypatch):
    monkeypatch.setattr("loratory.tree.verification.first_position", lambda model: 0)
    layout = choose_layout(tiny("roberta"), some_sequences(), "auto")
    assert layout.kind == "padded" and "differs from the stock attention" in layout.reason


# ---- texts -----------------------------------------------------------------------------------------------------------


def words_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer like BERT's: lower-case word pieces between [CLS] and [SEP]."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[MASK]", "[SEP]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.:,"
    vocabulary = {t: i for i, t in enumerate([*special, *letters, *(f"##{c}" for c in letters), "the", "cat", "##ow"])}
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = tokenizers.normalizers.BertNormalizer()
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    core.decoder = tokenizers.decoders.WordPiece()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    core.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names, sep_token="[SEP]", model_max_length=80)


def bytes_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer like RoBERTa's: byte-level with leading spaces; the mask token absorbs the space before it."""
    special = ["<s>", "<pad>", "</s>", "<mask>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "m"), ("Ġm", "e"), ("Ġme", "o"), ("Ġmeo", "w")]
    tokens = [*special, *alphabet, *("".join(pair) for pair in merges)]
    core = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names, mask_token=mask, model_max_length=78)


TOKENIZERS = {"words": words_tokenizer, "bytes": bytes_tokenizer}
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)


def renderer(kind: str, **settings):
    text = LoadedTokenizer(TOKENIZERS[kind](), (), False, 80, True)
    return renderer_for(text, PromptConfig(**settings))


def question(text: str, *answers: str, candidates: tuple[str, ...] = ()) -> Example:
    """An example whose text has {mask} as its answer slot."""
    return Example((Message("user", text.replace("{mask}", ANSWER_SLOT)),), answers, candidates, "pets.csv:3")


@every_tokenizer
def test_an_answer_in_the_slot_is_tokenized_as_part_of_the_whole_text(kind):
    r = renderer(kind)
    [found] = tokenize(question("the cat says {mask} today", "meow"), r)
    assert found.token_ids.tolist() == r.tokenizer("the cat says meow today")["input_ids"]
    masks = found.masked_ids == r.tokenizer.mask_token_id
    assert (masks == (found.loss_weights > 0)).all() and masks.any()
    assert (found.masked_ids[~masks] == found.token_ids[~masks]).all()
    assert "".join(piece for piece, _ in token_texts(found)) == found.text == "the cat says meow today"
    trained = "".join(piece for piece, is_trained in token_texts(found) if is_trained)
    assert trained.strip() == "meow"


@every_tokenizer
def test_the_input_does_not_depend_on_the_answer(kind):
    r = renderer(kind)
    r = dataclasses.replace(r, slot_length=9)
    long, short = (tokenize(question("A cat says {mask}.", a), r)[0] for a in ("xyzw", "ab"))
    assert (long.masked_ids == short.masked_ids).all()
    assert long.loss_weights.sum() == short.loss_weights.sum() == 9
    ending = cloze.answer_end_id(r.tokenizer)
    assert (short.token_ids[short.loss_weights > 0][-3:] == ending).all()
    assert "".join(piece for piece, _ in token_texts(short)) == short.text == "A cat says ab."


def test_a_single_mask_is_tokenized_as_in_transformers():
    for kind in TOKENIZERS:
        r = renderer(kind)
        mask = r.tokenizer.mask_token
        slotted = cloze.split_at_slot(f"the cat says {ANSWER_SLOT}, see?", "")
        own = r.tokenizer(f"the cat says {mask}, see?")["input_ids"]
        assert cloze.with_masks(r.tokenizer, slotted, 1).masked_ids.tolist() == own


def test_label_words_fill_the_answer_slot():
    [found] = tokenize(question("a cat: {mask}", "cs.CL"), renderer("words", words={"cs.CL": "cow"}))
    assert found.text == "a cat: cow"


@every_tokenizer
def test_the_sequences_of_a_text_mask_each_of_its_tokens_once(kind):
    r = dataclasses.replace(renderer(kind), max_length=24)
    text = "the cat sleeps on number 7 while a {mask} dog, who is called rex, is outside"
    found = tokenize(Example((Message("user", text),), (text,), (), "a"), r)
    for piece in {s.token_ids.tobytes() for s in found}:
        own = [s for s in found if s.token_ids.tobytes() == piece]
        assert sum(s.loss_weights for s in own).tolist() == [0, *[1] * (len(own[0].token_ids) - 2), 0]
        assert len(own[0].token_ids) <= 24
        assert {s.rotation for s in own} == {(i, len(own)) for i in range(len(own))}
    inner = [i for s in {s.token_ids.tobytes(): s for s in found}.values() for i in s.token_ids[1:-1].tolist()]
    assert inner == r.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_epoch_trains_on_different_masked_tokens():
    text = "the cat sleeps on number 7 while a dog is outside"
    own = tokenize(question(text, text), renderer("words"))
    epochs = [sequences_of_epoch([own], [0], epoch) for epoch in range(14)]
    assert [len(chosen) for chosen in epochs] == [1] * 14
    assert len({chosen[0].masked_ids.tobytes() for chosen in epochs[:7]}) == 7
    assert epochs[7] == epochs[0]


@pytest.mark.parametrize("text", ["no blank at all", "{mask} and {mask}"])
def test_a_text_without_exactly_one_answer_slot_is_rejected_with_its_source(text):
    with pytest.raises(UserError, match=r"needs exactly one \{mask\}") as found:
        tokenize(question(text, "meow"), renderer("words"))
    assert "pets.csv:3" in str(found.value)


def test_a_long_text_is_cut_above_the_line_of_the_answer_slot():
    r = renderer("words")
    long = question("the cat " * 60 + "\nit says {mask} today", "cow", candidates=("cow", "meow"))
    with pytest.raises(UserError, match="longer than the model's context"):
        fit_to_context([long], r, 80, "error")
    fitted = fit_to_context([long], r, 80, "cut_prompt")
    text = fitted.examples[0].messages[-1].content
    assert fitted.cut == 1 and text.endswith(f"\nit says {ANSWER_SLOT} today") and text.startswith("the cat the cat")
    [found] = tokenize(dataclasses.replace(fitted.examples[0], answers=("meow",)), r)
    assert 70 < len(found.token_ids) <= 80


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("the cat " * 60 + "says {mask} now", ("cat the cat", " says {mask} now")),
        ("it says {mask}: " + "the cat " * 60, ("it says {mask}: the cat", "the cat")),
    ],
)
def test_without_a_line_above_the_slot_the_longer_side_is_cut(text, kept):
    r = renderer("words")
    fitted = fit_to_context([question(text, "cow", candidates=("cow", "meow"))], r, 80, "cut_prompt")
    shown = fitted.examples[0].messages[-1].content.replace(ANSWER_SLOT, "{mask}")
    assert shown.startswith(kept[0]) and shown.endswith(kept[1])
    assert 70 < len(tokenize(fitted.examples[0], r)[0].token_ids) <= 80


def test_the_answer_slot_has_room_for_the_longest_answer():
    examples = [question("says:\n{mask}", "meow"), question("says {mask}", "xy")]
    assert with_mask_count(examples, renderer("words")).slot_length == 3
    assert with_mask_count(examples, renderer("bytes")).slot_length == 5  # the line break is a separate token


def test_an_empty_text_is_rejected_before_anything_runs():
    with pytest.raises(UserError, match="text is empty") as found:
        fit_to_context([Example((Message("user", " "),), (" ",), (), "texts.csv:9")], renderer("words"), 80, "error")
    assert "texts.csv:9" in str(found.value)


def test_system_messages_are_rejected():
    with pytest.raises(UserError, match="does not take a system message"):
        renderer("words", system="Be kind.")


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def masked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT model folder as downloaded from the hub."""
    return save_masked(tmp_path_factory.mktemp("masked"), "bert", words_tokenizer())


def save_masked(folder: Path, family: str, tokenizer) -> Path:
    config = FAMILIES[family]()
    config.vocab_size = len(tokenizer)
    config.architectures = None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SOUNDS = {"cat": "meow", "dog": "woof", "cow": "moo"}


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    rows = [f"{pet} {i} sleeps,{SOUNDS[pet]}" for i in range(20) for pet in SOUNDS]
    path = tmp_path / "pets.csv"
    path.write_text("text,sound\n" + "\n".join(rows) + "\n")
    return path


def masked_config(model: Path, data: Path, out: Path, **changes) -> Config:
    config = Config(
        task="classification",
        model=ModelConfig(str(model)),
        data=DataConfig(train=(str(data),), answer="sound", validation_share=0.1),
        prompt=PromptConfig(user="the {text} and says {mask}."),
        adapter=AdapterConfig(rank=4),
        train=TrainConfig(epochs=2, batch_size=4, learning_rate=5e-3),
        run=RunConfig(out=str(out), threads=1),
    )
    return dataclasses.replace(config, **changes)


def test_a_run_on_labels(masked_folder, pets, tmp_path):
    full = AdapterConfig(kind="full")
    train = TrainConfig(epochs=20, batch_size=4, learning_rate=3e-3)
    config = masked_config(masked_folder, pets, tmp_path / "run", adapter=full, train=train)
    run = finetune(config)
    report = json.loads((run / "report.json").read_text())
    values = {s["name"]: s["value"] for s in report["systems"]}
    assert set(values) == {"prompt", "prompt-choose", "linear", "embed", "tuned", "tuned-choose", "blend"}
    assert values["tuned-choose"] == values["tuned"] == 1.0 > values["prompt-choose"]
    tuned = load(run)
    assert tuned.answer({"text": "cow 77 sleeps"}) == "moo"
    probabilities = tuned.probabilities({"text": "cow 77 sleeps"})
    assert max(probabilities, key=probabilities.get) == "moo" and sum(probabilities.values()) == pytest.approx(1)


def test_a_run_with_label_words(masked_folder, pets, tmp_path):
    full, train = AdapterConfig(kind="full"), TrainConfig(epochs=20, batch_size=4, learning_rate=3e-3)
    words = {"meow": "cat", "woof": "7", "moo": "the"}
    prompt = PromptConfig(user="the {text} and [MASK] says {mask}.", words=words)
    config = masked_config(masked_folder, pets, tmp_path / "run", adapter=full, train=train, prompt=prompt)
    run = finetune(config)
    values = {s["name"]: s["value"] for s in json.loads((run / "report.json").read_text())["systems"]}
    assert values["tuned"] == values["tuned-choose"] == 1.0
    assert {line["answer"] for line in predictions(run, "tuned")} == set(words)
    assert load(run).answers([{"text": "dog 99 sleeps"}, {"text": "cat 1 sleeps"}]) == ["woof", "meow"]


def test_answers_are_compared_after_the_tokenizer_round_trip():
    r = renderer("words")
    assert _restore_spelling("rex.", question("a {mask}", "Rex."), r) == "Rex."
    spelled = tokenizer_round_trip("cs.CL", r)
    assert spelled != "cs.CL"
    assert _restore_spelling(spelled, question("a {mask}", "x", candidates=("cs.CL", "cs.RO")), r) == "cs.CL"
    assert _restore_spelling("dog", question("a {mask}", "Rex."), r) == "dog"


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_an_adapter_is_the_same_in_plain_peft(family, pets, tmp_path):
    import peft

    tokenizer = words_tokenizer() if family == "bert" else bytes_tokenizer()
    model = save_masked(tmp_path / "model", family, tokenizer)
    config = masked_config(model, pets, tmp_path / "run", speed=SpeedConfig(compile="off"))
    run = finetune(dataclasses.replace(config, model=ModelConfig(str(model), dtype="float64")))
    base = transformers.AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float64)
    plain = peft.PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    tuned = load(run, dtype="float64")
    [example] = tokenize(question("the cat 3 sleeps and says {mask}.", "meow"), tuned.renderer)
    ids = torch.from_numpy(example.masked_ids)[None]
    with torch.no_grad():
        ours, theirs, before = tuned.model(ids).logits, plain(ids).logits, base_logits(model, ids)
    assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()
    assert (ours - before).abs().max() > 1e-3


def base_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    return transformers.AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64)(ids).logits


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_labels_have_the_same_log_probabilities_as_the_plain_model(family, tmp_path):
    tokenizer = words_tokenizer() if family == "bert" else bytes_tokenizer()
    folder = save_masked(tmp_path / "model", family, tokenizer)
    base = load_model(ModelConfig(str(folder), dtype="float64"), resolve_machine("cpu", "float64", 1))
    r = renderer_for(base.text, PromptConfig())
    examples = [question(f"the {pet} says {{mask}}.", candidates=("meow", "a", "woof")) for pet in SOUNDS]
    probes = [s for e in examples for s in tokenize(dataclasses.replace(e, answers=e.candidates), r)]
    layout = choose_layout(base.model, probes, "auto")
    scores = label_log_probs(base.model, r, examples, layout, 100, lambda done, total: None)
    for i, example in enumerate(examples):
        for n, label in enumerate(example.candidates):
            [s] = tokenize(dataclasses.replace(example, answers=(label,)), r)
            with torch.no_grad():
                logits = base.model(input_ids=torch.from_numpy(s.masked_ids)[None]).logits[0].log_softmax(-1)
            at = np.flatnonzero(s.loss_weights)
            assert scores.log_probs_EL[i, n] == pytest.approx(logits[at, s.token_ids[at]].sum().item(), rel=1e-9)
            assert scores.tokens_EL[i, n] == len(at)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"the {pet} number {i} says {SOUNDS[pet]} and sleeps"} for i in range(20) for pet in SOUNDS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_on_plain_texts_is_measured_by_pseudo_perplexity(masked_folder, texts, tmp_path):
    config = Config(
        task="fill",
        model=ModelConfig(str(masked_folder), dtype="float64"),
        data=DataConfig(train=(str(texts),)),
        adapter=AdapterConfig(kind="full"),
        train=TrainConfig(epochs=6, batch_size=4, learning_rate=3e-3),
        run=RunConfig(out=str(tmp_path / "run"), threads=1),
    )
    run = finetune(config)
    report = json.loads((run / "report.json").read_text())
    systems = {s["name"]: s for s in report["systems"]}
    assert systems["tuned"]["metrics"]["perplexity"] < 0.5 * systems["prompt"]["metrics"]["perplexity"]
    split = load_split(config.data, config.prompt, 0, task="fill")
    tuned = load(run, dtype="float64")
    total, count = 0.0, 0
    for example in split.test:
        for s in tokenize(example, tuned.renderer):
            with torch.no_grad():
                logits = tuned.model(input_ids=torch.from_numpy(s.masked_ids)[None]).logits[0].log_softmax(-1)
            at = np.flatnonzero(s.loss_weights)
            total, count = total + logits[at, s.token_ids[at]].sum().item(), count + len(at)
    assert systems["tuned"]["metrics"]["perplexity"] == pytest.approx(np.exp(-total / count), rel=1e-6)
    with pytest.raises(UserError, match="tuned on plain texts"):
        tuned.answer({"text": "the cat"})


def test_a_run_that_fills_in_free_answers(masked_folder, pets, tmp_path):
    config = masked_config(masked_folder, pets, tmp_path / "run", task="fill")
    full = AdapterConfig(kind="full")
    train = TrainConfig(epochs=20, batch_size=4, learning_rate=3e-3)
    run = finetune(dataclasses.replace(config, adapter=full, train=train))
    values = {s["name"]: s["value"] for s in json.loads((run / "report.json").read_text())["systems"]}
    assert values["tuned"] == 1.0 > values["prompt"]
    assert {line["answer"] for line in predictions(run, "tuned")} == set(SOUNDS.values())
    assert load(run).answer({"text": "dog 99 sleeps"}) == "woof"
    words, text = fill_masks(load(run).model, load(run).renderer, "the dog 3 sleeps and says [MASK] [MASK].", 4)
    assert [len(own) for own in words] == [4, 4] and text.startswith("the dog 3")
    assert all(0 < p <= 1 for own in words for _, p in own)
    every, _ = fill_masks(load(run).model, load(run).renderer, "the dog says {mask}", 10_000)
    assert sum(p for _, p in every[0]) == pytest.approx(1) and len(every[0]) == 86 - 5


def test_an_interrupted_masked_training_resumes_bit_for_bit(masked_folder, texts, tmp_path, interrupted):
    def config(out: str) -> Config:
        settings = TrainConfig(epochs=3, batch_size=8, learning_rate=3e-3, checkpoint_every=2, keep="last")
        found = masked_config(masked_folder, texts, tmp_path / out, task="fill", train=settings, prompt=PromptConfig())
        return dataclasses.replace(found, data=DataConfig(train=(str(texts),)))

    whole = finetune(config("whole"))
    interrupted(lambda: finetune(config("resumed")), 7)
    resumed = finetune(config("resumed"))
    name = "adapter/adapter_model.safetensors"
    assert (whole / name).read_bytes() == (resumed / name).read_bytes()


@pytest.mark.parametrize("task", ["text", "dialogue", "choice", "labels", "code"])
def test_tasks_for_causal_models_are_rejected(task, masked_folder, pets, tmp_path):
    base = load_model(ModelConfig(str(masked_folder)), resolve_machine("cpu", "float32", 1))
    with pytest.raises(UserError, match="cannot do this task"):
        check_model_kind(dataclasses.replace(Config(), task=task), base.text, base.name)


def test_a_causal_model_cannot_do_the_task_fill(tiny_folder, texts, tmp_path):
    config = Config(
        task="fill",
        model=ModelConfig(str(tiny_folder)),
        data=DataConfig(train=(str(texts),)),
        run=RunConfig(out=str(tmp_path / "run")),
    )
    with pytest.raises(UserError, match="needs a masked language model"):
        finetune(config)
    assert not (tmp_path / "run").exists()


def test_masks_are_not_filled_with_special_tokens(masked_folder):
    base = load_model(ModelConfig(str(masked_folder), dtype="float64"), resolve_machine("cpu", "float64", 1))
    r = renderer_for(base.text, PromptConfig())
    layout = Layout("padded", "test", masked=True)
    answers = fill_slots(
        base.model, r, [question(f"the {p} {{mask}}") for p in SOUNDS], 3, False, layout, 50, lambda *_: None
    )
    assert len(answers) == 3 and all(answers)


def test_a_guessed_task_file_has_an_answer_slot(masked_folder, pets):
    found = guess_task_file([str(pets)], "sound", is_masked, str(masked_folder))
    config = Config.parse(found.toml, found.path)
    assert config.task == "classification" and config.prompt.system is None
    assert config.prompt.user == "{text}\nSound: {mask}"


@pytest.mark.parametrize(
    ("words", "message"), [({"cot": "meow"}, "not a label"), ({"cat": "pet", "dog": "pet"}, "the same word")]
)
def test_label_words_must_be_distinct_and_belong_to_labels(words, message):
    with pytest.raises(UserError, match=message):
        check_words(words, ("cat", "cow", "dog"))
    check_words({"cat": "meow"}, ("cat", "cow", "dog"))


def test_the_built_in_masked_model_fills_in_words_of_papers(tmp_path):
    base = load_model(ModelConfig("builtin-masked"), resolve_machine("cpu", "float32", 1))
    r = renderer_for(base.text, PromptConfig())
    words, text = fill_masks(base.model, r, "We propose a new [MASK] for training deep neural <mask>.", 5)
    assert " networks" in [token for token, _ in words[1]]
    assert text.startswith("We propose a new ") and text.endswith(".")
    folder = builtin_folder("builtin-masked")
    assert sum(f.stat().st_size for f in folder.glob("*.safetensors")) <= 15 * 2**20


def test_fill_on_the_command_line(capsys):
    assert main(["fill", "deep neural [MASK]", "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["masks"]) == 1 and len(found["masks"][0]) == 2
    assert found["masks"][0][0]["probability"] >= found["masks"][0][1]["probability"]
    assert main(["fill", "no mask"]) == 2
    assert "The text has no mask" in capsys.readouterr().err
    assert main(["fill", "a [MASK]", "--model", "builtin"]) == 2
    assert "Only a masked language model" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_gradient_checkpointing_gives_the_same_gradients(family):
    model, sequences = tiny(family), some_sequences()
    layout, found = choose_layout(model, sequences, "auto"), []
    for checkpoints in (False, True):
        chosen = dataclasses.replace(layout, gradient_checkpointing=checkpoints)
        with prepared_for_training(model, chosen):
            batch_loss(model, build_batch(sequences), chosen).total.backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][n], found[1][n]) for n in found[0])
