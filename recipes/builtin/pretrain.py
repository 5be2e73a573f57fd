"""How the package's demonstration model was made: tokenizer, token file, pretraining, saving. One command a stage.

    python recipes/builtin/pretrain.py tokens --papers FILE.jsonl.xz --work recipes/builtin/work
    python recipes/builtin/pretrain.py train --work recipes/builtin/work
    python recipes/builtin/pretrain.py save --work recipes/builtin/work --out src/loratory/builtin/model

``papers`` is any jsonl (or jsonl.xz) with "title" and "abstract"; nothing else of a record is read. Training goes on
from its newest checkpoint when it is started again.
"""

import argparse
import dataclasses
import itertools
import json
import lzma
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loratory.attention import Layout
from loratory.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from loratory.config import TrainConfig
from loratory.optim import make_optimizer
from loratory.render import TokenizedExample
from loratory.runs import append_metric
from loratory.train import mean_loss, total_steps, train

VOCABULARY = 4096
CONTEXT = 2304
WINDOW = 1024
LONG_EVERY = 8  # one window in so many spans the whole context
END, TURN, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MODEL = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=5,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=CONTEXT,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=2,
    pad_token_id=0,
    rms_norm_eps=1e-5,
)
LEARNING_RATE = 2.5e-3
SETTINGS = TrainConfig(epochs=1, batch_size=4, warmup=0.05, weight_decay=0.1, token_budget=5000, seed=0)


def read_papers(path: Path) -> Iterator[tuple[str, str]]:
    """Title and abstract of each record."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield " ".join(record["title"].split()), " ".join(record["abstract"].split())


def chat(user: str, assistant: str) -> str:
    return f"{TURN}user\n{user}{STOP}\n{TURN}assistant\n{assistant}{STOP}\n"


def document(paper: tuple[str, str], others: list[str], draw: random.Random) -> str:
    """A paper as plain text, or as one of two tasks: name it, or choose its title among others."""
    title, abstract = paper
    form = draw.random()
    if form < 0.5:
        return f"{title}\n\n{abstract}{END}"
    if form < 0.7:
        return chat(f"Write a title for this abstract.\n\n{abstract}", title)
    options = [title, *draw.sample(others, draw.randint(1, 5))]
    draw.shuffle(options)
    return chat(f"Which of these titles fits the abstract: {'; '.join(options)}?\n\n{abstract}", title)


def make_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END, TURN, STOP], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP, pad_token=END, model_max_length=CONTEXT)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_tokens(papers: Path, work: Path, count: int) -> None:
    """The tokenizer, and all documents one after another as 16-bit ids."""
    work.mkdir(parents=True, exist_ok=True)
    chosen = list(itertools.islice(read_papers(papers), count))
    tokenizer = make_tokenizer(f"{title}\n\n{abstract}" for title, abstract in chosen[:20_000])
    tokenizer.save_pretrained(work / "tokenizer")
    draw = random.Random(0)
    titles = [title for title, _ in chosen]
    ids = []
    for start in range(0, len(chosen), 1000):
        texts = [document(paper, titles, draw) for paper in chosen[start : start + 1000]]
        for found in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            ids.append(np.array(found, dtype=np.uint16))
    np.concatenate(ids).tofile(work / "tokens.bin")
    characters = sum(len(title) + len(abstract) for title, abstract in chosen)
    print(f"{len(chosen)} papers, {sum(map(len, ids)):,} tokens, {characters:,} characters")


class Windows(Sequence):
    """The token file as training sequences: one in LONG_EVERY spans the whole context."""

    def __init__(self, path: Path, first: int, last: int):
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")
        self.first, self.last = first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> list[TokenizedExample]:
        if index >= len(self):
            raise IndexError(index)
        start, length = self.place(self.first + index)
        ids = np.array(self.tokens[start : start + length], dtype=np.int64)
        spans = np.zeros((length, 2), dtype=np.int64)
        return [TokenizedExample(ids, np.ones(length, dtype=np.float32), "", spans, f"window {index}")]

    @staticmethod
    def place(index: int) -> tuple[int, int]:
        """Start and length of a window."""
        groups, rest = divmod(index, LONG_EVERY)
        start = groups * ((LONG_EVERY - 1) * WINDOW + CONTEXT) + rest * WINDOW
        return start, CONTEXT if rest == LONG_EVERY - 1 else WINDOW


def pretrain(work: Path, minutes: float) -> None:
    """As many steps as ``minutes`` allow at the speed of the first three, then the whole schedule over them."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(MODEL)
    optimizer = make_optimizer(model, SETTINGS)
    plan = work / "plan.json"
    layout = Layout("tree", "Llama")
    if not plan.exists():
        steps = measure(model, work, minutes, layout)
        plan.write_text(json.dumps({"steps": steps}))
        torch.manual_seed(0)
        model = LlamaForCausalLM(MODEL)
        optimizer = make_optimizer(model, SETTINGS)
    steps = json.loads(plan.read_text())["steps"]
    windows = Windows(work / "tokens.bin", 0, steps * SETTINGS.batch_size)
    found, _ = latest_checkpoint(work / "checkpoints")
    if found:
        load_checkpoint(found, model, optimizer)
    started = time.time()
    first = found.step if found else 0
    for result in train(model, windows, optimizer, SETTINGS, LEARNING_RATE, layout, first):
        append_metric(work, "step", **dataclasses.asdict(result))
        if result.step % 10 == 0:
            left = (time.time() - started) / (result.step - first) * (result.steps - result.step) / 60
            rate = result.tokens / result.seconds
            print(f"{result.step}/{result.steps} loss {result.loss:.3f} {rate:.0f} tokens/s {left:.0f} min", flush=True)
        if result.step % 50 == 0 or result.step == result.steps:
            save_checkpoint(work / "checkpoints", model, optimizer, result.step)
    held_out = Windows(work / "tokens.bin", len(windows), len(windows) + 40)
    loss = mean_loss(model, held_out, layout, SETTINGS.token_budget)
    append_metric(work, "validation", step=total_steps(len(windows), SETTINGS), loss=loss)
    print(f"held-out loss {loss:.3f} nats a token, perplexity {math.exp(loss):.1f}")


def measure(model: LlamaForCausalLM, work: Path, minutes: float, layout: Layout) -> int:
    """Steps that fit into ``minutes``."""
    few = Windows(work / "tokens.bin", 0, 3 * SETTINGS.batch_size)
    results = list(train(model, few, make_optimizer(model, SETTINGS), SETTINGS, 0.0, layout))
    seconds = sum(r.seconds for r in results[1:]) / (len(results) - 1)
    return int(minutes * 60 / seconds)


def save(work: Path, out: Path) -> None:
    """The newest checkpoint as a folder that any program can load, weights in bfloat16."""
    model = LlamaForCausalLM(MODEL)
    found, _ = latest_checkpoint(work / "checkpoints")
    assert found, "train first"
    load_checkpoint(found, model, None)
    model.generation_config = GenerationConfig(eos_token_id=[0, 2], pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size="15MB")
    PreTrainedTokenizerFast.from_pretrained(work / "tokenizer").save_pretrained(out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters after {found.step} steps -> {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tokens", "train", "save"])
    parser.add_argument("--papers", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=40_000, help="papers to read")
    parser.add_argument("--minutes", type=float, default=36.0, help="time for training on this machine")
    args = parser.parse_args()
    if args.stage == "tokens":
        make_tokens(args.papers, args.work, args.count)
    elif args.stage == "train":
        pretrain(args.work, args.minutes)
    else:
        save(args.work, args.out)


if __name__ == "__main__":
    main()
