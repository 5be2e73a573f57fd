"""What a pretrained model is worth on papers that it never saw: bits a byte and a choice among titles, or, of a masked
language model, the hidden tokens that it finds."""

import dataclasses
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
from objectives import hidden_tokens
from papers import Paper
from settings import Settings
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loratory.text import TokenizedExample
from loratory.training import mean_loss
from loratory.tree import Layout, completion_log_probs

OPTIONS = 6
CHOICES = 300  # papers asked for their title
TITLES = 5
TOKEN_BUDGET = 4096
HIDDEN = 0.15


def evaluate(model: PreTrainedModel, work: Path, settings: Settings) -> dict[str, Any]:
    """Figures on the held-out papers."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    papers = held_out_papers(work)
    started = time.perf_counter()
    measure = masked_figures if settings.masked else causal_figures
    found = {"papers": len(papers), **measure(model, tokenizer, papers, settings)}
    found["seconds"] = time.perf_counter() - started
    print(json.dumps(found, indent=2, ensure_ascii=False), flush=True)
    return found


def causal_figures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, papers: Sequence[Paper], settings: Settings
) -> dict[str, Any]:
    """With titles for the first few papers."""
    layout = Layout("tree", "the model is known", plain_head=True)
    return {
        "bits_per_byte": bits_per_byte(model, tokenizer, papers, layout),
        "title_choice": title_choice(model, tokenizer, papers[:CHOICES], layout),
        "titles": [{"paper": p.title, "model": title_of(model, tokenizer, p)} for p in papers[:TITLES]],
    }


@torch.no_grad()
def masked_figures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, papers: Sequence[Paper], settings: Settings
) -> dict[str, Any]:
    """Of one token in seven, hidden as in training: the mean loss in nats, and how many are found."""
    draw = torch.Generator().manual_seed(0)
    shares = dataclasses.replace(settings, masked=HIDDEN)
    loss = found = hidden = 0.0
    for paper in papers:
        row = torch.from_numpy(encode(tokenizer, paper.text + END))[None]
        inputs, chosen_H, targets_H = hidden_tokens(row, shares, tokenizer.mask_token_id, draw)
        states = model.model(input_ids=inputs.to(model.device)).last_hidden_state[0, chosen_H]  # type: ignore[operator]
        logits = model.decoder(model.head(states)).float().cpu()  # type: ignore[operator]
        loss += float(cross_entropy(logits, targets_H, reduction="sum"))
        found += int((logits.argmax(1) == targets_H).sum())
        hidden += len(targets_H)
    return {"hidden_share": HIDDEN, "hidden_loss": loss / hidden, "hidden_found": found / hidden}


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
    found = completion_log_probs(model, prompts, completions, layout, TOKEN_BUDGET, lambda done, total: None)
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
