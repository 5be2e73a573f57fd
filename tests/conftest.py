"""Shared fixtures. Types and array shapes at the boundaries are checked here, and only here, by jaxtyping."""

import os

# Tiny models gain nothing from threads, and tests that run side by side would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from jaxtyping import install_import_hook

install_import_hook("loratory", "beartype.beartype")

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny import ANIMALS, write_tiny_model

from loratory.text.rendering import TokenizedExample

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder is not on this machine")
VOCABULARY = 64
TABLE = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table that test_templates found."""
    if lines := terminalreporter.config.stash.get(TABLE, None):
        terminalreporter.section("chat templates")
        terminalreporter.write_line("\n".join(lines))


# float64 models whose norms or softmax round to float32 inside agree to this; the others to 1e-10.
RELATIVE = 1e-5

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, num_hidden_layers=2),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, num_hidden_layers=2),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, num_hidden_layers=2, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL,
        head_dim=8,
        num_hidden_layers=3,
        sliding_window=5,
        layer_types=["sliding_attention"] * 2 + ["full_attention"],
    ),
    "mistral": lambda: transformers.MistralConfig(**SMALL, num_hidden_layers=2, sliding_window=5),
}


def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model whose attention matters: weights are drawn wider than the usual start."""
    config = CONFIGS[family]()
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, key, None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "norm" not in name and "ln_" not in name:
                    parameter.normal_(0, 0.15)
    return model.eval()


def sequence(token_ids: list[int], trained: int | list[float] = 2) -> TokenizedExample:
    """A sequence whose last ``trained`` tokens (or whose given weights) count."""
    weights = np.zeros(len(token_ids), dtype=np.float32)
    if isinstance(trained, int):
        weights[max(1, len(token_ids) - trained) :] = 1
    else:
        weights[:] = trained
    ids = np.array(token_ids, dtype=np.int64)
    return TokenizedExample(ids, weights, "", np.zeros((len(ids), 2), dtype=np.int64), "test")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as the hub would give it: random Llama, byte-level tokenizer, chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A csv of 48 sentences with three labels that one word decides."""
    names = list(ANIMALS)
    rows = [f"The {names[i % 3]} number {i} sleeps,{ANIMALS[names[i % 3]]}" for i in range(48)]
    path = tmp_path / "animals.csv"
    path.write_text("text,sound\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def interrupted(monkeypatch):
    """Returns a function that calls another one, which is interrupted in the optimizer step after the given number."""
    from loratory.training import loop

    def call(function, steps: int) -> None:
        done, step = [0], loop.optimizer_step

        def failing(*args):
            done[0] += 1
            if done[0] > steps:
                raise KeyboardInterrupt
            return step(*args)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "optimizer_step", failing)
            with pytest.raises(KeyboardInterrupt):
                function()

    return call
