"""Evaluates a pretrained model on held-out papers.

Causal models: bits per byte, and the accuracy of choosing a title. Masked language models: the accuracy on masked
tokens.
"""

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

from loratory.events import ignore_progress
from loratory.text import TokenizedExample
from loratory.training import mean_loss
from loratory.tree import Layout, completion_log_probs

OPTIONS = 6
CHOICES = 300  # papers for the choice among titles
TITLES = 5
TOKEN_BUDGET = 4096
HIDDEN = 0.15


def evaluate(model: PreTrainedModel, work: Path, settings: Settings) -> dict[str, Any]:
    """Metrics on the held-out papers."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    papers = held_out_papers(work)
    started = time.perf_counter()
    measure = masked_figures if settings.masked else causal_figures
    metrics = {"papers": len(papers), **measure(model, tokenizer, papers, settings)}
    metrics["seconds"] = time.perf_counter() - started
    print(json.dumps(metrics, indent=2, ensure_ascii=False), flush=True)
    return metrics


def causal_figures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, papers: Sequence[Paper], settings: Settings
) -> dict[str, Any]:
    """Metrics of a causal model, with generated titles for the first few papers."""
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
    """Mean loss in nats and accuracy on a share of HIDDEN of the tokens, masked as in training."""
    draw = torch.Generator().manual_seed(0)
    shares = dataclasses.replace(settings, masked=HIDDEN)
    loss = correct = hidden = 0.0
    for paper in papers:
        row = torch.from_numpy(encode(tokenizer, paper.text + END))[None]
        inputs, chosen_H, targets_H = hidden_tokens(row, shares, tokenizer.mask_token_id, draw)
        states = model.model(input_ids=inputs.to(model.device)).last_hidden_state[0, chosen_H]  # type: ignore[operator]
        logits = model.decoder(model.head(states)).float().cpu()  # type: ignore[operator]
        loss += float(cross_entropy(logits, targets_H, reduction="sum"))
        correct += int((logits.argmax(1) == targets_H).sum())
        hidden += len(targets_H)
    return {"hidden_share": HIDDEN, "hidden_loss": loss / hidden, "hidden_found": correct / hidden}


def bits_per_byte(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, papers: Sequence[Paper], layout: Layout
) -> float:
    """Cross-entropy of plain papers and their end token, in bits per UTF-8 byte; the first token is given."""
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
    """Share of abstracts whose title has the highest mean log-probability per token among six titles."""
    draw = random.Random(0)
    prompts, completions = [], []
    for paper in papers:
        options = [paper.title, *draw.sample([p.title for p in papers if p is not paper], OPTIONS - 1)]
        listed = "; ".join(draw.sample(options, OPTIONS))
        prompt = chat([("user", f"Which of these titles belongs to the abstract: {listed}\n\n{paper.abstract}")])
        prompts.append(encode(tokenizer, f"{prompt}{TURN}assistant\n"))
        completions.append([encode(tokenizer, option + STOP).tolist() for option in options])
    log_probs = completion_log_probs(model, prompts, completions, layout, TOKEN_BUDGET, ignore_progress)
    means = [scores / [len(c) for c in titles] for scores, titles in zip(log_probs, completions, strict=True)]
    return float(np.mean([scores.argmax() == 0 for scores in means]))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)


@torch.no_grad()
def title_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, paper: Paper) -> str:
    """A title for an abstract, by greedy decoding."""
    prompt = chat([("user", f"Write a title for this abstract.\n\n{paper.abstract}")])
    ids = torch.from_numpy(encode(tokenizer, f"{prompt}{TURN}assistant\n"))[None].to(next(model.parameters()).device)
    stops = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    generated = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)).strip()
