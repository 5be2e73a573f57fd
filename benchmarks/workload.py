"""Random models and examples for Loratory, with helpers for peak memory and GPU synchronization."""

import resource

import numpy as np
import torch
from shapes import SHAPES, rows
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from loratory.text import TokenizedExample

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def random_model(shape: str, dtype: str, device: str) -> PreTrainedModel:
    """A Llama model of this shape, created in ``dtype``, so that no larger copy adds to the peak memory."""
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=4096)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).to(device).eval()


def tokenized(data: str, count: int, vocab_size: int) -> list[list[TokenizedExample]]:
    """``count`` examples of one sequence each, with the answer as targets."""
    return [[_example(prompt, answer)] for prompt, answer in rows(data, count, vocab_size)]


def _example(prompt: list[int], answer: list[int]) -> TokenizedExample:
    ids = np.array([*prompt, *answer], dtype=np.int64)
    weights = np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt), len(answer)])
    return TokenizedExample(ids, weights, "", np.zeros((len(ids), 2), dtype=np.int64), "benchmark")


def peak_memory_bytes(device: str) -> int:
    """Peak memory so far: allocated GPU memory on "cuda", otherwise resident memory of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def wait_for(device: str) -> None:
    """Waits until the device has finished its work, because a GPU runs asynchronously."""
    if device == "cuda":
        torch.cuda.synchronize()
