"""Log-probabilities of candidate answers through the token tree, and the rule that turns them into a choice.

E: examples.  L: labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from scipy.special import log_softmax
from torch import nn

from loratory.attention import Layout, prepared
from loratory.batches import micro_batches
from loratory.examples import Example
from loratory.generate import Progress
from loratory.loss import target_log_probs
from loratory.render import Renderer, join, render_prompt

RuleName = Literal["sum", "mean", "prior"]
EXAMPLES_AT_ONCE = 64  # bounds the memory that rendered candidates take


@dataclass(frozen=True)
class LabelScores:
    """What the model says of every label for every example."""

    log_probs_EL: Float64[np.ndarray, "E L"]
    """Natural log, summed over the label's tokens and its ending, given the prompt."""
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
    """Mean log-probability of each label on the validation prompts; zeros unless the rule is "prior"."""


@torch.no_grad()
def label_log_probs(
    model: nn.Module,
    renderer: Renderer,
    examples: Sequence[Example],
    labels: Sequence[str],
    layout: Layout,
    token_budget: int,
    progress: Progress,
) -> LabelScores:
    """Scores every label as a leaf of its example's prompt: the prompt is computed once."""
    model.eval()
    device = next(model.parameters()).device
    log_probs = np.zeros(len(examples) * len(labels))
    tokens = np.zeros(len(examples) * len(labels), dtype=np.int64)
    with prepared(model, layout):
        for start in range(0, len(examples), EXAMPLES_AT_ONCE):
            part = examples[start : start + EXAMPLES_AT_ONCE]
            prompts = [render_prompt(e.messages, renderer, e.source) for e in part]
            leaves = [join(p, x, renderer, e.source) for p, e in zip(prompts, part, strict=True) for x in labels]
            for batch in micro_batches(leaves, token_budget, layout.share):
                batch = batch.to(device)
                values = target_log_probs(model, batch, layout).double().cpu().numpy()
                owner = start * len(labels) + batch.target_sequence_N.cpu().numpy()
                np.add.at(log_probs, owner, values)
                np.add.at(tokens, owner, 1)
            progress(start + len(part), len(examples))
    shape = (len(examples), len(labels))
    return LabelScores(log_probs.reshape(shape), tokens.reshape(shape))


def fit_rule(scores: LabelScores, expected: Sequence[int]) -> Rule:
    """The rule with the most right choices on validation; the simpler one where they tie.

    ``expected``: the index of each example's label. Without examples: sum.
    """
    plain = Rule("sum", (0.0,) * scores.log_probs_EL.shape[1])
    if not len(expected):
        return plain
    prior = tuple(scores.log_probs_EL.mean(axis=0).tolist())
    rules = [plain, Rule("mean", plain.prior), Rule("prior", prior)]
    return max(rules, key=lambda rule: int((probabilities(scores, rule).argmax(axis=1) == np.array(expected)).sum()))


def probabilities(scores: LabelScores, rule: Rule) -> Float64[np.ndarray, "E L"]:
    """Label probabilities after the rule: a softmax over the labels."""
    values = scores.log_probs_EL - np.array(rule.prior)
    if rule.name == "mean":
        values = values / scores.tokens_EL
    return np.exp(log_softmax(values, axis=1))
