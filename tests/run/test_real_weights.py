"""A small pretrained model, tuned here and loaded by plain PEFT and Transformers in a separate process."""

import copy
import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import SHARED, needs_shared
from safetensors.torch import load_file
from test_loss import in_batches, one_by_one

from loratory.data.examples import Example, Message
from loratory.machine.device import Machine
from loratory.models.adapters import attach_adapter, load_adapter, save_tuned_model
from loratory.models.loading import LoadedModel, load_model
from loratory.settings import AdapterConfig, ModelConfig, PromptConfig, TrainConfig
from loratory.text.rendering import TokenizedExample, tokenize
from loratory.text.template import Renderer, make_renderer
from loratory.training.loop import StepResult, train
from loratory.training.optimizer import make_optimizer
from loratory.tree.layout import Layout
from loratory.tree.scoring import label_log_probs
from loratory.tree.verification import choose_layout

pytestmark = [
    pytest.mark.thorough,
    needs_shared,
    # PEFT uses a property of Transformers 5 that version 6 removes.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
FOLDER = SHARED / "data" / "models" / "stories260K"
LABELS = ["happy", "sad", "very sad", "angry"]
TEXT = "the little girl went to a park with her dog and saw one big red ball then lily said no"
CONFIG = TrainConfig(epochs=4, batch_size=8, learning_rate=1e-2, warmup=0.0)
ADAPTER = AdapterConfig(rank=4, alpha=8)

# Does not import this package. Reads sequences; writes logits, and loss and log-probabilities of a padded batch.
PLAIN = """
import json, sys
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

base, adapter, task, out = sys.argv[1:]
task = json.load(open(task))
torch.set_num_threads(task["threads"])
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
width = max(map(len, task["ids"]))
ids = torch.tensor([row + [0] * (width - len(row)) for row in task["ids"]])
mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in task["ids"]])
labels = torch.tensor([row + [-100] * (width - len(row)) for row in task["labels"]])
with torch.no_grad():
    logits = model(torch.tensor([task["ids"][0]])).logits
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
wanted = labels[:, 1:]
log_probs = output.logits[:, :-1].log_softmax(-1).gather(2, wanted.clamp(min=0)[..., None])[..., 0]
sums = (log_probs * (wanted != -100)).sum(1)
save_file({"logits": logits.contiguous(), "loss": output.loss, "log_probs": sums}, out)
"""


@dataclasses.dataclass
class Trained:
    """A finished training of a few steps."""

    base: LoadedModel
    model: torch.nn.Module
    renderer: Renderer
    examples: list[Example]
    sequences: list[TokenizedExample]
    layout: Layout
    results: list[StepResult]
    before: torch.Tensor
    """The base model's logits on the first sequence."""
    folder: Path


def load(dtype: torch.dtype = torch.float32) -> LoadedModel:
    return load_model(
        ModelConfig(name=str(FOLDER)), Machine(torch.device("cpu"), dtype, torch.get_num_threads(), "test")
    )


def renderer_of(base: LoadedModel) -> Renderer:
    return make_renderer(base.text.tokenizer, base.text.stop_ids, PromptConfig(date="2026-01-01"))


def stories(count: int, seed: int) -> list[Example]:
    draw = random.Random(seed)
    system = Message("system", "Say how the story feels: happy, sad, very sad or angry.")
    texts = [" ".join(draw.choices(TEXT.split(), k=draw.randint(3, 25))) for _ in range(count)]
    return [
        Example((system, Message("user", f"One day {text}.")), (draw.choice(LABELS),), tuple(LABELS), f"test:{i}")
        for i, text in enumerate(texts)
    ]


@torch.no_grad()
def logits_of(model: torch.nn.Module, s: TokenizedExample) -> torch.Tensor:
    return model.eval()(torch.from_numpy(s.token_ids)[None]).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    base = load()
    renderer = renderer_of(base)
    examples = stories(CONFIG.batch_size, seed=0)
    sequences = [s for e in examples for s in tokenize(e, renderer)]
    layout = choose_layout(base.model, sequences, "auto")
    before = logits_of(base.model, sequences[0])
    model = attach_adapter(base, ADAPTER, seed=0)
    results = list(train(model, [[s] for s in sequences], make_optimizer(model, CONFIG), CONFIG, 1e-2, layout))
    folder = tmp_path_factory.mktemp("run") / "adapter"
    card = {
        "base": {"name": base.name, "revision": base.revision, "weights_sha256": base.hashes["weights"]},
        "prompt": {},
        "labels": LABELS,
        "answer": "feeling",
        "adapter": "lora",
    }
    save_tuned_model(model, folder, base.text.tokenizer, renderer.stop_ids, card)
    return Trained(base, model, renderer, examples, sequences, layout, results, before, folder)


def plain(run: Trained, sequences: list[TokenizedExample], folder: Path) -> dict[str, torch.Tensor]:
    """The output of the script above, run in a separate process."""
    ids, labels = [s.token_ids.tolist() for s in sequences], [padded_labels(s) for s in sequences]
    task, out = folder / "task.json", folder / "out.safetensors"
    task.write_text(json.dumps({"ids": ids, "labels": labels, "threads": torch.get_num_threads()}))
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, str(FOLDER), str(run.folder), str(task), str(out)]
    subprocess.run(command, check=True, timeout=300)
    return load_file(out)


def padded_labels(s: TokenizedExample) -> list[int]:
    return np.where(s.loss_weights > 0, s.token_ids, -100).tolist()


def test_the_pretrained_model_trains_on_trees(trained):
    assert trained.layout.kind == "tree"
    assert trained.results[0].unique_tokens < 0.8 * trained.results[0].tokens
    losses = [r.loss for r in trained.results]
    assert losses[-1] < 0.8 * losses[0]


def test_plain_peft_in_a_separate_process_agrees_with_the_trained_model(trained, tmp_path):
    """Logits bit for bit, the loss of a right-padded batch, and the summed log-probabilities of every label."""
    answers = [dataclasses.replace(e, answers=(label,)) for e in trained.examples for label in LABELS]
    sequences = [*trained.sequences, *(s for e in answers for s in tokenize(e, trained.renderer))]
    found = plain(trained, sequences, tmp_path)
    own = logits_of(trained.model, trained.sequences[0])
    assert torch.equal(found["logits"], own)
    assert (own - trained.before).abs().max() > 0.1

    scores = label_log_probs(
        trained.model, trained.renderer, trained.examples, trained.layout, 4096, lambda done, total: None
    )
    by_label = found["log_probs"][len(trained.sequences) :].view(len(trained.examples), len(LABELS))
    np.testing.assert_allclose(scores.log_probs_EL, by_label.numpy(), rtol=0, atol=1e-4)

    config = dataclasses.replace(CONFIG, epochs=1, batch_size=len(sequences))
    again = copy.deepcopy(trained.model)
    [result] = train(again, [[s] for s in sequences], make_optimizer(again, config), config, 0.0, trained.layout)
    assert result.loss == pytest.approx(found["loss"].item(), rel=1e-5)


def test_the_first_loss_equals_plain_peft_on_a_padded_batch(trained):
    base = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, settings)
    rows = [torch.from_numpy(s.token_ids) for s in trained.sequences]
    labels = [torch.tensor(padded_labels(s)) for s in trained.sequences]
    pad = torch.nn.utils.rnn.pad_sequence
    ids, wanted = pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=-100)
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    loss = model(input_ids=ids, attention_mask=mask, labels=wanted).loss
    assert trained.results[0].loss == pytest.approx(loss.item(), rel=1e-5)


def test_a_saved_adapter_is_loaded_bit_for_bit(trained):
    model = load_adapter(load(), trained.folder)
    s = trained.sequences[0]
    assert torch.equal(logits_of(model, s), logits_of(trained.model, s))


def test_attaching_an_adapter_does_not_change_the_logits(trained):
    base = load()
    model = attach_adapter(dataclasses.replace(base, name="owner/name", revision="abc"), ADAPTER, seed=0)
    assert torch.equal(logits_of(model, trained.sequences[0]), trained.before)
    assert model.peft_config["default"].base_model_name_or_path == "owner/name"


def adapter_gradient(found: tuple[float, dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([g.double().flatten() for name, g in found[1].items() if "lora_" in name])


def test_bfloat16_trees_are_as_close_to_float32_as_bfloat16_sequences_one_by_one():
    base = load(torch.bfloat16)
    renderer = renderer_of(base)
    half = attach_adapter(base, ADAPTER, seed=0)
    torch.manual_seed(0)
    for name, parameter in half.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)  # with B = 0, the gradients of A are zero
    single = copy.deepcopy(half).float()  # the same rounded weights
    distances = []
    for seed in range(3):
        sequences = [s for e in stories(6, seed) for s in tokenize(e, renderer)]
        exact = adapter_gradient(one_by_one(single, sequences))
        fast = choose_layout(base.model, sequences, "tree")
        assert fast.skips_rows
        assert fast.plain_head
        for found in (one_by_one(half, sequences), in_batches(half, sequences, fast, 4096)):
            distances.append(((adapter_gradient(found) - exact).norm() / exact.norm()).item())
    alone, tree = distances[::2], distances[1::2]
    assert sum(tree) <= 1.25 * sum(alone)
    assert max(tree) < 0.2
