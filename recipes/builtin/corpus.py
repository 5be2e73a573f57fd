"""Papers -> tokenizer, held-out papers, and one memory-mapped file of all documents' tokens."""

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from documents import CHAT_TEMPLATE, END, MASK, MOST_TURNS, STOP, TURN, Source, count_words, make_document
from jaxtyping import Int64
from numpy.typing import NDArray
from papers import Paper, read_papers
from settings import Settings
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

SAMPLE = 30_000  # papers that the vocabulary and the rarity of words are taken from
AT_ONCE = 2000
WAITING = 64  # documents that a window is filled from

Ids = NDArray[np.uint16]


def make_corpus(files: Sequence[Path], work: Path, settings: Settings, held_out: int, most: int | None) -> None:
    """Everything that training reads, in ``work``. The first ``held_out`` papers are never trained on; ``most``: papers
    after them that are, all if None."""
    work.mkdir(parents=True, exist_ok=True)
    papers = read_papers(files)
    rows = [json.dumps(dataclasses.asdict(paper)) + "\n" for paper in islice(papers, held_out)]
    (work / "held-out.jsonl").write_text("".join(rows))
    chosen = list(islice(papers, most))
    tokenizer = make_tokenizer((paper.text for paper in chosen[:SAMPLE]), settings)
    source = Source(chosen, count_words(chosen[:SAMPLE]))
    written = write_tokens(documents(chosen, source, settings), tokenizer, work, settings)
    tokenizer.save_pretrained(work / "tokenizer")
    print(f"{len(chosen):,} papers, {written:,} tokens, {len(rows):,} papers held out", flush=True)


def documents(papers: Sequence[Paper], source: Source, settings: Settings) -> Iterator[str]:
    """One a paper; a conversation of several turns is about the papers that follow too."""
    draw = random.Random(settings.seed)
    for start in range(len(papers)):
        yield make_document(papers[start : start + MOST_TURNS], source, draw, settings.plain)


def make_tokenizer(texts: Iterator[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE, digits one by one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END, TURN, STOP, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=STOP,
        pad_token=END,
        mask_token=MASK,
        model_max_length=settings.context,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_tokens(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, work: Path, settings: Settings) -> int:
    """``tokens.bin``: 16-bit ids, each document cut to the context, packed. Returns how many ids."""
    found = (
        np.array(ids[: settings.context], dtype=np.uint16)
        for some in batched(texts, AT_ONCE)
        for ids in tokenizer(some, add_special_tokens=False)["input_ids"]
    )
    written = 0
    with (work / "tokens.bin").open("wb") as file:
        for ids in packed(found, settings.window, tokenizer.pad_token_id):
            ids.tofile(file)
            written += len(ids)
    return written


def packed(documents: Iterator[Ids], window: int, filler: int) -> Iterator[Ids]:
    """The documents, in an order in which few lie across a multiple of ``window``.

    The oldest one begins a window, and the longest that fit of some that wait come behind it. What then is left of the
    window is filled; the oldest one begins in it where that would be more than an eighth.
    """
    waiting = list(islice(documents, WAITING))
    room = 0
    while waiting:
        fitting = [i for i, ids in enumerate(waiting) if len(ids) <= room]
        if not fitting and room <= window // 8:
            yield np.full(room, filler, dtype=np.uint16)
            room = 0
        chosen = waiting.pop(max(fitting, key=lambda i: len(waiting[i])) if fitting else 0)
        room = (room - len(chosen)) % window
        yield chosen
        waiting += islice(documents, 1)


def batched(items: Iterator[str], count: int) -> Iterator[list[str]]:
    while some := list(islice(items, count)):
        yield some


class Windows:
    """The token file as rows of equal length, each with one token more, which the last one predicts."""

    def __init__(self, work: Path, length: int):
        tokens = np.memmap(work / "tokens.bin", dtype=np.uint16, mode="r")
        self.length = length
        self.tokens = tokens[: (len(tokens) - 1) // length * length + 1]

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def rows(self, indices: Sequence[int]) -> Int64[Tensor, "rows length+1"]:
        rows = [self.tokens[i * self.length : (i + 1) * self.length + 1] for i in indices]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def held_out_papers(work: Path) -> list[Paper]:
    return list(read_papers([work / "held-out.jsonl"]))
