"""Random models and made-up examples as Loratory takes them, and what is read off the machine while they run."""

import resource

import numpy as np
import torch
from shapes import SHAPES, rows
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from loratory.text import TokenizedExample

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def random_model(shape: str, dtype: str, device: str) -> PreTrainedModel:
    """A Llama of that shape, made in its number format, so that no larger copy adds to the peak memory."""
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=4096)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).to(device).eval()


def tokenized(data: str, count: int, vocab_size: int) -> list[list[TokenizedExample]]:
    """``count`` examples of one sequence each; the answer is trained."""
    return [[_example(prompt, answer)] for prompt, answer in rows(data, count, vocab_size)]


def _example(prompt: list[int], answer: list[int]) -> TokenizedExample:
    ids = np.array([*prompt, *answer], dtype=np.int64)
    weights = np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt), len(answer)])
    return TokenizedExample(ids, weights, "", np.zeros((len(ids), 2), dtype=np.int64), "benchmark")


def peak_memory_bytes(device: str) -> int:
    """The most memory that was held so far: of the GPU where one is used, else resident memory of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def wait_for(device: str) -> None:
    """Returns when the device has done all that it was given; a GPU works on while Python goes ahead."""
    if device == "cuda":
        torch.cuda.synchronize()
