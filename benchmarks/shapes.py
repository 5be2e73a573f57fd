"""Model shapes and random examples shared by all benchmarks.

Does not import Loratory, because the scripts of other libraries use it too. Weights and tokens are random, because
speed does not depend on their values.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

EOS = 2
SHAPES = {
    "llama-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    },
    "smollm-135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152,
    },
    "tiny-10m": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 8192,
    },
}  # fmt: skip


@dataclass(frozen=True)
class DataShape:
    """Token counts of the shared prompt, of an example's own text, and of its answer."""

    shared: int
    own: tuple[int, int, int]
    """Minimum, mean and maximum."""
    answer: tuple[int, int]
    """Minimum and maximum, including the end-of-sequence token."""


DATA = {
    "shared": DataShape(150, (60, 220, 420), (3, 7)),
    "unshared": DataShape(0, (210, 370, 570), (3, 7)),
    "long-answers": DataShape(0, (60, 150, 300), (200, 400)),
}


def rows(data: str, count: int, vocab_size: int, seed: int = 0) -> Iterator[tuple[list[int], list[int]]]:
    """Yields ``count`` pairs of prompt ids and answer ids."""
    shape, draw = DATA[data], random.Random(seed)
    fewest, mean, most = shape.own

    def tokens(n: int) -> list[int]:
        return [draw.randrange(3, vocab_size) for _ in range(n)]

    shared = tokens(shape.shared)
    for _ in range(count):
        own = max(fewest, min(most, int(draw.gauss(mean, (most - fewest) / 5))))
        yield shared + tokens(own), [*tokens(draw.randint(*shape.answer) - 1), EOS]
