"""The corpus: papers -> tokenizer, held-out papers, and a memory-mapped file with the tokens of all documents."""

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from multiprocessing.pool import ThreadPool
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

SAMPLE = 30_000  # papers on which the tokenizer is trained and word frequencies are counted
AT_ONCE = 2000  # documents tokenized at once
WAITING = 64  # documents among which a window is packed

Ids = NDArray[np.uint16]


def make_corpus(files: Sequence[Path], work: Path, settings: Settings, held_out: int, most: int | None) -> None:
    """Writes everything that training reads to ``work``.

    The first ``held_out`` papers are held out. At most ``most`` of the following papers are used, all of them if None.
    """
    work.mkdir(parents=True, exist_ok=True)
    papers = read_papers(files)
    rows = [json.dumps(dataclasses.asdict(paper)) + "\n" for paper in islice(papers, held_out)]
    (work / "held-out.jsonl").write_text("".join(rows))
    chosen = list(islice(papers, most))
    if (work / "tokenizer").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    else:
        tokenizer = make_tokenizer((paper.text for paper in chosen[:SAMPLE]), settings)
        tokenizer.save_pretrained(work / "tokenizer")
    source = Source(chosen, count_words(chosen[:SAMPLE]))
    written = write_tokens(documents(chosen, source, settings), tokenizer, work, settings)
    print(f"{len(chosen):,} papers, {written:,} tokens, {len(rows):,} papers held out", flush=True)


def documents(papers: Sequence[Paper], source: Source, settings: Settings) -> Iterator[str]:
    """One document per paper; a multi-turn conversation also covers the papers that follow."""
    draw = random.Random(settings.seed)
    for start in range(len(papers)):
        yield make_document(papers[start : start + MOST_TURNS], source, draw, settings.plain)


def make_tokenizer(texts: Iterator[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer that splits numbers into digits."""
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
    """Writes ``tokens.bin``: packed 16-bit ids, each document truncated to the context. Returns the number of ids.

    Documents are tokenized on all cores while the next ones are made.
    """

    def encoded(some: list[str]) -> list[Ids]:
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(some, add_special_tokens=False)
        return [np.array(encoding.ids[: settings.context], dtype=np.uint16) for encoding in encodings]

    written = 0
    with ThreadPool(1) as pool, (work / "tokens.bin").open("wb") as file:
        token_ids = chain.from_iterable(pool.imap(encoded, batched(texts, AT_ONCE)))
        for ids in packed(token_ids, settings.window, tokenizer.pad_token_id):
            ids.tofile(file)
            written += len(ids)
    return written


def packed(documents: Iterator[Ids], window: int, filler: int) -> Iterator[Ids]:
    """Yields the documents in an order in which few of them cross a window boundary.

    Of the waiting documents, the longest that fits into the rest of the window comes next. If none fits and at most an
    eighth of the window is left, the rest is padded with ``filler``; if more is left, the oldest document starts there.
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
    """The token file as rows of ``length`` tokens, each followed by the token that its last one predicts."""

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
