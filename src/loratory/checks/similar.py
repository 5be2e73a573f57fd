"""Texts that are nearly the same, found by MinHash in time linear in the number of texts.

n: texts, S: shingles of all texts, P: permutations.
"""

import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32, UInt64

TOKENS = re.compile(r"\w+|[^\w\s]")
SHINGLE = 3  # tokens
FEWEST_TOKENS = 8  # one word is too large a part of a shorter text
MOST_TOKENS = 2_000  # of a text that are compared
MOST_TEXTS = 50_000
THRESHOLD = 0.8  # of the Jaccard similarity of two texts' shingles
# 16 bands of 4: two texts with a similarity of 0.8 meet in a band with a probability above 0.999.
BANDS, BAND = 16, 4
SLACK = 0.15  # three standard errors of a similarity of 0.8 that 64 permutations estimate
FIRST_COMPARED = 8  # texts of a bucket that all others in it are compared with, so that time stays linear
CHUNK = 1 << 21  # shingles whose hashes are computed at once


def normalized(text: str) -> str:
    """The NFKC form of a text without case and with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def near_earlier(texts: Sequence[str]) -> dict[int, int]:
    """Maps the index of a text to that of an earlier one with almost the same shingles.

    Two texts are nearly the same if the Jaccard similarity of their sets of three consecutive tokens (words and signs)
    is at least ``THRESHOLD``. Candidates are found by MinHash (Broder 1997) with banding, and compared exactly. Texts
    of fewer than ``FEWEST_TOKENS`` tokens are left out, and so are texts after the first ``MOST_TEXTS``. ``texts`` are
    normalized and all different.
    """
    words: dict[str, int] = {}
    shingles = {}
    for i, text in enumerate(texts[:MOST_TEXTS]):
        tokens = TOKENS.findall(text)[:MOST_TOKENS]
        if len(tokens) >= FEWEST_TOKENS:
            shingles[i] = _shingles(tokens, words)
    if len(shingles) < 2:
        return {}
    indices = np.array(list(shingles))
    signatures = _signatures(list(shingles.values()))
    found: dict[int, int] = {}
    for earlier, later in _candidates(signatures):
        i, j = int(indices[earlier]), int(indices[later])
        if j not in found and (signatures[earlier] == signatures[later]).mean() >= THRESHOLD - SLACK:
            common = len(np.intersect1d(shingles[i], shingles[j], assume_unique=True))
            if common >= THRESHOLD * (len(shingles[i]) + len(shingles[j]) - common):
                found[j] = i
    return found


def _shingles(tokens: Sequence[str], words: dict[str, int]) -> UInt64[np.ndarray, "S"]:
    """The different hashes of every ``SHINGLE`` consecutive tokens. ``words`` remembers the hashes of tokens."""
    for token in tokens:
        if token not in words:
            words[token] = zlib.crc32(token.encode("utf-8", "replace"))
    ids = np.fromiter((words[token] for token in tokens), np.uint64, len(tokens))
    windows = np.lib.stride_tricks.sliding_window_view(ids, SHINGLE)
    factors = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
    mixed = (windows * factors).sum(axis=1, dtype=np.uint64)
    return np.unique(mixed ^ (mixed >> np.uint64(29)))


def _signatures(sets: Sequence[UInt64[np.ndarray, "_"]]) -> UInt32[np.ndarray, "n P"]:
    """The least hash of each set under each permutation, by multiply-shift hashing (Dietzfelbinger et al. 1997)."""
    rng = np.random.default_rng(0)
    odd = rng.integers(0, 1 << 63, BANDS * BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    add = rng.integers(0, 1 << 63, BANDS * BAND, dtype=np.uint64)
    sizes = np.array([len(s) for s in sets])
    chunk = np.cumsum(sizes) // CHUNK
    parts = []
    for number in np.unique(chunk):
        inside = np.flatnonzero(chunk == number)
        flat = np.concatenate([sets[i] for i in inside.tolist()])
        starts = np.concatenate([[0], np.cumsum(sizes[inside])[:-1]])
        rows = [np.minimum.reduceat((flat * a + b) >> np.uint64(32), starts) for a, b in zip(odd, add, strict=True)]
        parts.append(np.stack(rows, axis=1).astype(np.uint32))
    return np.concatenate(parts)


def _candidates(signatures: UInt32[np.ndarray, "n P"]) -> list[tuple[int, int]]:
    """Pairs of texts that agree in a whole band: each with the first ones of its bucket, the earlier text first."""
    pairs: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        part = np.ascontiguousarray(signatures[:, band * BAND : (band + 1) * BAND])
        for i, row in enumerate(part):
            bucket = buckets[row.tobytes()]
            pairs.update((other, i) for other in bucket[:FIRST_COMPARED])
            bucket.append(i)
    return sorted(pairs, key=lambda pair: (pair[1], pair[0]))
