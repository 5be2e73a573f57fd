"""Log-probabilities of candidate answers, computed on token trees, and the rule that turns them into a choice.

E: examples.  L: labels.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.special import log_softmax
from torch import nn

from loratory.data import Example
from loratory.events import ProgressCallback
from loratory.text import Renderer, TokenizedExample, completion_ids, render_prompt, tokenize
from loratory.tree.batches import micro_batches
from loratory.tree.forward import prepared
from loratory.tree.generation import NO_PREFIX, Prefix, shared_prefix
from loratory.tree.layout import Layout
from loratory.tree.loss import target_log_probs

RuleName = Literal["sum", "mean", "prior"]
GROUPS_AT_ONCE = 64  # limits the memory of their sequences


@dataclass(frozen=True)
class LabelScores:
    """The model's score of every label for every example."""

    log_probs_EL: Float64[np.ndarray, "E L"]
    """Natural log, summed over the label's tokens and its ending, given the prompt; -inf beyond an example's labels."""
    tokens_EL: Int64[np.ndarray, "E L"]
    """Number of tokens summed."""


@dataclass(frozen=True)
class Rule:
    """How log-probabilities become a choice.

    sum: the most probable label. mean: the label with the highest log-probability per token, which does not favor short
    labels. prior: the label with the largest gain over its mean log-probability on other prompts (Zhou et al., "Batch
    Calibration", ICLR 2024), which does not favor labels that the model prefers regardless of the input.
    """

    name: RuleName
    prior: tuple[float, ...]
    """Mean log-probability of each label on the validation prompts; zeros unless the rule is "prior", and empty if each
    example has its own candidates."""
    threshold: float | None = None
    """For sets of labels: every label with at least this probability is chosen, and always the most probable one."""


def label_log_probs(
    model: nn.Module,
    renderer: Renderer,
    examples: Sequence[Example],
    layout: Layout,
    token_budget: int,
    progress: ProgressCallback,
) -> LabelScores:
    """Scores every candidate as a leaf of its example's prompt; the prefix that all prompts share is computed once.

    L is the largest number of candidates of any example. A masked language model scores each candidate in the text's
    blank.
    """
    if renderer.is_masked_lm:
        filled = (tokenize(dataclasses.replace(e, answers=e.candidates), renderer) for e in examples)
        scored = group_log_probs(model, filled, len(examples), layout, token_budget, progress)
        return _table([[value for value, _ in one] for one in scored], [[count for _, count in one] for one in scored])
    ids, completions, distinct = [], [], {}
    for example in examples:  # most prompts have the same completion ids, which are stored once
        prompt = render_prompt(example.messages, renderer, example.source)
        of_example = tuple(
            tuple(completion_ids(prompt, label, renderer, example.source)[0]) for label in example.candidates
        )
        ids.append(prompt.token_ids)
        completions.append(distinct.setdefault(of_example, of_example))
    log_probs = completion_log_probs(model, ids, completions, layout, token_budget, progress)
    return _table(log_probs, [[len(c) for c in of_example] for of_example in completions])


def _table(log_probs: Sequence[Sequence[float] | np.ndarray], tokens: Sequence[Sequence[int]]) -> LabelScores:
    """Pads log-probabilities and token counts to rectangles."""
    shape = (len(tokens), max(map(len, tokens), default=0))
    log_probs_EL, tokens_EL = np.full(shape, -np.inf), np.ones(shape, dtype=np.int64)
    for i, (values, counts) in enumerate(zip(log_probs, tokens, strict=True)):
        log_probs_EL[i, : len(counts)] = values
        tokens_EL[i, : len(counts)] = counts
    return LabelScores(log_probs_EL, tokens_EL)


def completion_log_probs(
    model: nn.Module,
    prompts: Sequence[Int64[np.ndarray, "_"]],
    completions: Sequence[Sequence[Sequence[int]]],
    layout: Layout,
    token_budget: int,
    progress: ProgressCallback,
) -> list[Float64[np.ndarray, "_"]]:
    """The log-probability of each completion of each prompt: natural log, summed over the completion's tokens.

    The completions of a prompt are leaves of one tree; the prefix that all prompts share is computed once.
    """
    model.eval()
    longest = max((len(c) for of_prompt in completions for c in of_prompt), default=0)
    prefix = shared_prefix(model, prompts, longest) if layout.share else NO_PREFIX
    leaves = (
        [scored_sequence(prompt[prefix.length :], completion) for completion in of_prompt]
        for prompt, of_prompt in zip(prompts, completions, strict=True)
    )
    scored = group_log_probs(model, leaves, len(prompts), layout, token_budget, progress, prefix)
    return [np.array([value for value, _ in pairs]) for pairs in scored]


@torch.no_grad()
def group_log_probs(
    model: nn.Module,
    groups: Iterable[Sequence[TokenizedExample]],
    count: int,
    layout: Layout,
    token_budget: int,
    progress: ProgressCallback,
    prefix: Prefix = NO_PREFIX,
) -> list[list[tuple[float, int]]]:
    """The summed natural log-probability of the target tokens, and their number, for each sequence of ``count`` groups.

    The sequences of a group are the answers to one prompt, the turns of a conversation, a blank with several answers,
    or a text with different parts masked in turn: shared prefixes are computed once. All sequences continue ``prefix``.
    """
    model.eval()
    device = next(model.parameters()).device
    remaining, scored = iter(groups), []
    with prepared(model, layout):
        while chunk := list(islice(remaining, GROUPS_AT_ONCE)):
            sums = [np.zeros(len(group)) for group in chunk]
            owners = [(i, n) for i, group in enumerate(chunk) for n in range(len(group))]
            for batch in micro_batches([sequence for group in chunk for sequence in group], token_budget, layout.share):
                batch = dataclasses.replace(batch, position_ids_T=batch.position_ids_T + prefix.length).to(device)
                values = target_log_probs(model, batch, layout, prefix.cache).cpu().double().numpy()
                for owner, value in zip(batch.target_sequence_N.tolist(), values, strict=True):
                    i, n = owners[owner]
                    sums[i][n] += value
            for group, totals in zip(chunk, sums, strict=True):
                scored.append([(float(v), int((s.loss_weights > 0).sum())) for s, v in zip(group, totals, strict=True)])
            progress(len(scored), count)
    return scored


def scored_sequence(prompt: Int64[np.ndarray, "_"], completion: Sequence[int]) -> TokenizedExample:
    """A prompt and a completion whose tokens are the targets; only for scoring, so it carries no text or offsets."""
    weights = np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt), len(completion)])
    ids = np.concatenate([prompt, np.array(completion, dtype=np.int64)])
    return TokenizedExample(ids, weights, "", np.zeros((len(ids), 2), dtype=np.int64), "")


def fit_rule(scores: LabelScores, expected: Sequence[int], same_labels: bool = True) -> Rule:
    """The rule with the most correct choices on validation; the simpler one if they tie.

    ``expected``: the index of each example's label. Without examples, the rule is "sum". The rule "prior" requires all
    examples to have the same labels (``same_labels``).
    """
    simplest = Rule("sum", (0.0,) * scores.log_probs_EL.shape[1] if same_labels else ())
    if not len(expected):
        return simplest
    rules = [simplest, Rule("mean", simplest.prior)]
    if same_labels:
        rules.append(Rule("prior", tuple(scores.log_probs_EL.mean(axis=0).tolist())))
    return max(rules, key=lambda rule: int((probabilities(scores, rule).argmax(axis=1) == np.array(expected)).sum()))


def probabilities(scores: LabelScores, rule: Rule) -> Float64[np.ndarray, "E L"]:
    """Label probabilities under the rule: a softmax over the labels."""
    values = scores.log_probs_EL - np.array(rule.prior or 0.0)
    if rule.name == "mean":
        values = values / scores.tokens_EL
    return np.exp(log_softmax(values, axis=1))
