"""What a pretrained model is worth: bits a byte on papers that it never saw, and a choice among titles."""

import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import held_out_papers
from documents import END, STOP, TURN, chat
from papers import Paper
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loratory.attention import Layout
from loratory.render import TokenizedExample
from loratory.score import sequence_log_probs
from loratory.train import mean_loss

OPTIONS = 6
CHOICES = 300  # papers asked for their title
TITLES = 5
TOKEN_BUDGET = 4096


def evaluate(model: nn.Module, work: Path) -> dict[str, Any]:
    """Figures on the held-out papers, and titles for the first few of them."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    papers = held_out_papers(work)
    layout = Layout("tree", "the model is known", plain_head=True)
    started = time.perf_counter()
    found = {
        "papers": len(papers),
        "bits_per_byte": bits_per_byte(model, tokenizer, papers, layout),
        "title_choice": title_choice(model, tokenizer, papers[:CHOICES], layout),
        "titles": [{"paper": p.title, "model": title_of(model, tokenizer, p)} for p in papers[:TITLES]],
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps(found, indent=2, ensure_ascii=False), flush=True)
    return found


def bits_per_byte(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, papers: Sequence[Paper], layout: Layout
) -> float:
    """Cross-entropy of plain papers and their end, in bits, over their bytes in UTF-8. The first token is given."""
    sequences = [trained(tokenizer, paper.text + END) for paper in papers]
    nats = mean_loss(model, [[s] for s in sequences], layout, TOKEN_BUDGET)
    tokens = sum(len(s.token_ids) - 1 for s in sequences)
    return nats * tokens / math.log(2) / sum(len(paper.text.encode()) for paper in papers)


def trained(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenizedExample:
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
    return TokenizedExample(ids, np.ones(len(ids), dtype=np.float32), "", np.zeros((len(ids), 2), dtype=np.int64), "")


def title_choice(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, papers: Sequence[Paper], layout: Layout
) -> float:
    """Share of abstracts whose own title, among those of five other papers, is the most probable answer a token."""
    draw = random.Random(0)
    prompts, completions = [], []
    for paper in papers:
        options = [paper.title, *draw.sample([p.title for p in papers if p is not paper], OPTIONS - 1)]
        listed = "; ".join(draw.sample(options, OPTIONS))
        asked = chat([("user", f"Which of these titles belongs to the abstract: {listed}\n\n{paper.abstract}")])
        prompts.append(encode(tokenizer, f"{asked}{TURN}assistant\n"))
        completions.append([encode(tokenizer, option + STOP).tolist() for option in options])
    found = sequence_log_probs(model, prompts, completions, layout, TOKEN_BUDGET, lambda done, total: None)
    means = [scores / [len(c) for c in own] for scores, own in zip(found, completions, strict=True)]
    return float(np.mean([scores.argmax() == 0 for scores in means]))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)


@torch.no_grad()
def title_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, paper: Paper) -> str:
    """The greedy title of an abstract."""
    asked = chat([("user", f"Write a title for this abstract.\n\n{paper.abstract}")])
    ids = torch.from_numpy(encode(tokenizer, f"{asked}{TURN}assistant\n"))[None].to(next(model.parameters()).device)
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    found = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)).strip()
