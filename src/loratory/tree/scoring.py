"""Log-probabilities of candidate answers through the token tree, and the rule that turns them into a choice.

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
GROUPS_AT_ONCE = 64  # bounds the memory that their sequences take


@dataclass(frozen=True)
class LabelScores:
    """What the model says of every label for every example."""

    log_probs_EL: Float64[np.ndarray, "E L"]
    """Natural log, summed over the label's tokens and its ending, given the prompt; -inf beyond an example's own."""
    tokens_EL: Int64[np.ndarray, "E L"]
    """How many tokens were summed."""


@dataclass(frozen=True)
class Rule:
    """How log-probabilities become a choice.

    sum: the most probable label. mean: the most probable a token, which does not favour short labels. prior: the label
    that gains most over its mean log-probability on other prompts (Zhou et al., "Batch Calibration", ICLR 2024), which
    does not favour labels that the model likes whatever it reads.
    """

    name: RuleName
    prior: tuple[float, ...]
    """Mean log-probability of each label on the validation prompts; zeros unless the rule is "prior", and none where
    each example has candidates of its own."""
    threshold: float | None = None
    """Where a set is chosen: every label of at least this probability, and always the most probable one."""


def label_log_probs(
    model: nn.Module,
    renderer: Renderer,
    examples: Sequence[Example],
    layout: Layout,
    token_budget: int,
    progress: ProgressCallback,
) -> LabelScores:
    """Scores every candidate as a leaf of its example's prompt; what all prompts begin with is computed once.

    L is the largest number of candidates of an example. A masked language model scores each in the text's blank.
    """
    if renderer.masked:
        filled = (tokenize(dataclasses.replace(e, answers=e.candidates), renderer) for e in examples)
        found = group_log_probs(model, filled, len(examples), layout, token_budget, progress)
        return _table([[value for value, _ in own] for own in found], [[count for _, count in own] for own in found])
    ids, completions, known = [], [], {}
    for example in examples:  # most prompts are followed by the same ids, which are kept once
        prompt = render_prompt(example.messages, renderer, example.source)
        own = tuple(tuple(completion_ids(prompt, label, renderer)[0]) for label in example.candidates)
        ids.append(prompt.token_ids)
        completions.append(known.setdefault(own, own))
    found = completion_log_probs(model, ids, completions, layout, token_budget, progress)
    return _table(found, [[len(c) for c in own] for own in completions])


def _table(log_probs: Sequence[Sequence[float] | np.ndarray], tokens: Sequence[Sequence[int]]) -> LabelScores:
    """Both as rectangles."""
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
    """For each prompt the log-probability of each of its completions: natural log, summed over the completion's tokens.

    Completions of a prompt are leaves of one tree, and the beginning that all prompts share is computed once for all.
    """
    model.eval()
    longest = max((len(c) for of_one in completions for c in of_one), default=0)
    prefix = shared_prefix(model, prompts, longest) if layout.share else NO_PREFIX
    pairs = zip(prompts, completions, strict=True)
    leaves = (
        [scored_sequence(prompt[prefix.length :], completion) for completion in of_one] for prompt, of_one in pairs
    )
    found = group_log_probs(model, leaves, len(prompts), layout, token_budget, progress, prefix)
    return [np.array([value for value, _ in own]) for own in found]


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
    """For each sequence of each of ``count`` groups: the natural log-probability of its trained tokens, summed, and
    their number.

    The sequences of a group are the answers to one prompt, the turns of a conversation, a blank with several answers,
    or a text with one part hidden after another: what they share is computed once. All of them continue ``prefix``.
    """
    model.eval()
    device = next(model.parameters()).device
    remaining, found = iter(groups), []
    with prepared(model, layout):
        while some := list(islice(remaining, GROUPS_AT_ONCE)):
            sums = [np.zeros(len(own)) for own in some]
            owners = [(i, n) for i, own in enumerate(some) for n in range(len(own))]
            for batch in micro_batches([sequence for own in some for sequence in own], token_budget, layout.share):
                batch = dataclasses.replace(batch, position_ids_T=batch.position_ids_T + prefix.length).to(device)
                values = target_log_probs(model, batch, layout, prefix.cache).double().cpu().numpy()
                for owner, value in zip(batch.target_sequence_N.tolist(), values, strict=True):
                    i, n = owners[owner]
                    sums[i][n] += value
            for own, of_one in zip(some, sums, strict=True):
                found.append([(float(v), int((s.loss_weights > 0).sum())) for s, v in zip(own, of_one, strict=True)])
            progress(len(found), count)
    return found


def scored_sequence(prompt: Int64[np.ndarray, "_"], completion: Sequence[int]) -> TokenizedExample:
    """A prompt with a completion whose tokens are targets; nothing of it will be shown."""
    weights = np.repeat(np.array([0, 1], dtype=np.float32), [len(prompt), len(completion)])
    ids = np.concatenate([prompt, np.array(completion, dtype=np.int64)])
    return TokenizedExample(ids, weights, "", np.zeros((len(ids), 2), dtype=np.int64), "")


def fit_rule(scores: LabelScores, expected: Sequence[int], same_labels: bool = True) -> Rule:
    """The rule with the most right choices on validation; the simpler one where they tie.

    ``expected``: the index of each example's label. Without examples: sum. The rule "prior" needs the same labels for
    all examples.
    """
    plain = Rule("sum", (0.0,) * scores.log_probs_EL.shape[1] if same_labels else ())
    if not len(expected):
        return plain
    rules = [plain, Rule("mean", plain.prior)]
    if same_labels:
        rules.append(Rule("prior", tuple(scores.log_probs_EL.mean(axis=0).tolist())))
    return max(rules, key=lambda rule: int((probabilities(scores, rule).argmax(axis=1) == np.array(expected)).sum()))


def probabilities(scores: LabelScores, rule: Rule) -> Float64[np.ndarray, "E L"]:
    """Label probabilities after the rule: a softmax over the labels."""
    values = scores.log_probs_EL - np.array(rule.prior or 0.0)
    if rule.name == "mean":
        values = values / scores.tokens_EL
    return np.exp(log_softmax(values, axis=1))
