"""The kinds of system: generation, label scoring, fill-mask, classifiers, copy rules."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from loratory.data import FIXED_LABEL_TASKS, LABEL_SEPARATOR, Example, Split, Tests, with_shots
from loratory.evaluation.baselines import FittedClassifier
from loratory.evaluation.blend import as_log_probs, cross_fitted, fit_weights, mix
from loratory.evaluation.evaluate_system import EvalRecord, NotMeasurable, Prediction, System, not_finite_scores
from loratory.evaluation.sandbox import run_program
from loratory.events import ProgressCallback
from loratory.metrics import parse_label, set_f1
from loratory.text import Renderer, example_length, label_word, render_prompt, tokenize, tokenizer_round_trip
from loratory.tree import (
    LabelScores,
    Layout,
    Rule,
    fill_slots,
    fit_rule,
    generate,
    group_log_probs,
    label_log_probs,
    predict_masked_tokens,
    probabilities,
)

GENERATION_BUDGET_FACTOR = 4  # factor on the token budget: in training, gradients take most of the memory
THRESHOLDS_TRIED = 200
EXTRA_TOKENS = 8  # room for quotes, asterisks or a period around a generated answer


@dataclass(frozen=True)
class PromptedModel:
    """A model, with what is needed to prompt it."""

    model: nn.Module
    renderer: Renderer
    layout: Layout
    shots: tuple[Example, ...]
    """Solved examples shown before each prompt."""
    max_answer_tokens: int
    """Number of tokens in the longest expected answer."""
    token_budget: int


def continuation_system(prompting: PromptedModel) -> System:
    """Continues each text greedily; white space at the start of the continuation is kept."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        p = prompting
        ids = [render_prompt(e.messages, p.renderer, e.source).token_ids for e in examples]
        budget = GENERATION_BUDGET_FACTOR * p.token_budget
        texts = generate(p.model, ids, p.renderer, p.max_answer_tokens, budget, progress)
        return [Prediction(text, None, None) for text in texts]

    return System(predict, None, None)


def generation_system(prompting: PromptedModel, note: str | None) -> System:
    """Greedy generation. If an example has candidates, ``parse_label`` reads the chosen one from the generated text."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        r = prompting.renderer
        prompts = [render_prompt(with_shots(e, prompting.shots).messages, r, e.source) for e in examples]
        ids = [p.token_ids for p in prompts]
        budget = GENERATION_BUDGET_FACTOR * prompting.token_budget
        texts = generate(prompting.model, ids, r, prompting.max_answer_tokens + EXTRA_TOKENS, budget, progress)
        answers = [parse_label(text, e.candidates) or text.strip() for text, e in zip(texts, examples, strict=True)]
        return [Prediction(answer, None, None) for answer in answers]

    return System(predict, note, None)


def fill_mask_system(prompting: PromptedModel, tuned: bool) -> System:
    """Fills the answer slot of each text. ``tuned``: the model has learned to end its answers."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        p = prompting
        texts = fill_slots(
            p.model, p.renderer, examples, p.max_answer_tokens, tuned, p.layout, p.token_budget, progress
        )
        return [
            Prediction(_restore_spelling(t, e, p.renderer), None, None) for t, e in zip(texts, examples, strict=True)
        ]

    return System(predict, None, None)


def _restore_spelling(text: str, example: Example, renderer: Renderer) -> str:
    """The candidate or reference answer that decodes to this text, or the text itself.

    Many tokenizers of masked language models decode to lower case, with spaces around punctuation.
    """
    answers = example.candidates or example.answers
    spelled = {tokenizer_round_trip(label_word(a, renderer), renderer): a for a in answers}
    match = parse_label(text, list(spelled)) if example.candidates else text
    return spelled.get(text if match is None else match, text)


def masked_text_system(prompting: PromptedModel) -> System:
    """Predicts masked tokens of plain texts, and measures the log-probability of every token while it is masked."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        p = prompting
        masked = [tokenize(e, p.renderer) for e in examples]
        turns = group_log_probs(p.model, masked, len(masked), p.layout, p.token_budget, progress)
        texts = predict_masked_tokens(p.model, p.renderer, [group[0] for group in masked], p.layout, p.token_budget)
        return [Prediction(text, None, None, tuple(group)) for text, group in zip(texts, turns, strict=True)]

    return System(predict, None, None)


def document_system(prompting: PromptedModel) -> System:
    """Measures the log-probabilities of all tokens of each document, window by window; generates nothing."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        p = prompting
        windows = (tokenize(e, p.renderer) for e in examples)
        turns = group_log_probs(p.model, windows, len(examples), p.layout, p.token_budget, progress)
        return [Prediction("", None, None, tuple(group)) for group in turns]

    return System(predict, None, None)


def conversation_system(prompting: PromptedModel) -> System:
    """Generates the last turn of each conversation, and measures the log-probabilities of all reference turns."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        p = prompting
        references = (tokenize(e, p.renderer) for e in examples)
        turns = group_log_probs(p.model, references, len(examples), p.layout, p.token_budget, progress)
        generated = generation_system(p, None).predict(examples, progress)
        return [dataclasses.replace(g, turns=tuple(group)) for g, group in zip(generated, turns, strict=True)]

    return System(predict, None, None)


def code_system(prompting: PromptedModel, seconds: float | None, note: str | None) -> System:
    """Generates programs. Unless ``seconds`` is None, runs each with its example's tests within that time limit."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        generated = generation_system(prompting, note).predict(examples, progress)
        predictions = [dataclasses.replace(g, answer=extract_code(g.answer)) for g in generated]
        if seconds is None:
            return predictions
        outcomes = [
            run_program(*candidate_programs(p.answer, e.tests), tests=e.tests.statements, seconds=seconds)
            for p, e in zip(predictions, examples, strict=True)
            if e.tests
        ]
        return [dataclasses.replace(p, failure=o.reason) for p, o in zip(predictions, outcomes, strict=True)]

    return System(predict, note, None)


def extract_code(answer: str) -> str:
    """The first fenced code block of an answer, or the whole answer if it has none."""
    match = re.search(r"```[\w+-]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return match[1].rstrip() if match else answer


def candidate_programs(answer: str, tests: Tests) -> list[str]:
    """The programs that an answer may be, the most likely first.

    The answer stands alone if it defines the tested function or if there is no prefix to continue. Otherwise it follows
    the prefix, once as it is and once with the indentation that its first line may have lost.
    """
    whole = not tests.prefix or (tests.name and re.search(rf"^\s*def {re.escape(tests.name)}\b", answer, re.MULTILINE))
    starts = [""] if whole else [tests.prefix, tests.prefix + "    "]
    return [f"{start}{answer}\n{tests.suffix}" for start in starts]


def label_scoring_system(
    prompting: PromptedModel, validation: Sequence[Example], task: str, note: str | None, progress: ProgressCallback
) -> System:
    """Scores every candidate; the rule, and for sets of labels the threshold, is fitted on validation."""

    def score(examples: Sequence[Example], progress: ProgressCallback) -> LabelScores:
        prompts = [with_shots(e, prompting.shots) for e in examples]
        p = prompting
        scores = label_log_probs(p.model, p.renderer, prompts, p.layout, p.token_budget, progress)
        for example, row in zip(examples, scores.log_probs_EL, strict=True):
            if not np.isfinite(row[: len(example.candidates)]).all():
                raise not_finite_scores(example)
        return scores

    on_validation = score(validation, progress)
    rule = fit_rule(on_validation, [e.candidates.index(e.answer) for e in validation], task in FIXED_LABEL_TASKS)
    if task == "labels":
        predictions = choices(on_validation, rule, validation) if validation else []
        rule = dataclasses.replace(rule, threshold=fit_threshold(predictions, validation))

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        scores = on_validation if examples is validation else score(examples, progress)
        return choices(scores, rule, examples)

    return System(predict, note, rule)


def fit_threshold(predictions: Sequence[Prediction], validation: Sequence[Example]) -> float:
    """The probability threshold that gives the best mean set F1 on validation; 0.5 without validation examples."""
    thresholds = sorted({p for prediction in predictions for p in (prediction.probabilities or {}).values()})
    thresholds = thresholds[:: max(1, len(thresholds) // THRESHOLDS_TRIED)] or [0.5]

    def score(threshold: float) -> float:
        pairs = zip(predictions, validation, strict=True)
        return sum((set_f1(labels_above(p.probabilities or {}, threshold), e.answers) for p, e in pairs), start=0.0)

    return max(thresholds, key=score)


def labels_above(probabilities: Mapping[str, float], threshold: float) -> tuple[str, ...]:
    """The labels with a probability of at least ``threshold``, sorted; the most probable one if there are none."""
    labels = tuple(sorted(label for label, p in probabilities.items() if p >= threshold))
    return labels or (max(probabilities, key=lambda label: probabilities[label]),)


def multilabel_classifier_system(
    fitted: FittedClassifier, validation: Sequence[Example], progress: ProgressCallback
) -> System:
    """A classifier with an independent probability for each label; the threshold is the best on validation."""
    predictions = [Prediction("", None, row) for row in fitted.classify(validation, progress)] if validation else []
    threshold = fit_threshold(predictions, validation)

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        rows = fitted.classify(examples, progress)
        return [Prediction(LABEL_SEPARATOR.join(labels_above(row, threshold)), None, row) for row in rows]

    return System(predict, f"{fitted.note}; labels with a probability of at least {threshold:.2f}", None)


def choices(scores: LabelScores, rule: Rule, examples: Sequence[Example]) -> list[Prediction]:
    """The candidate, or the set of labels, that the rule chooses for each example."""
    predictions = []
    for example, raw, after in zip(examples, scores.log_probs_EL, probabilities(scores, rule), strict=True):
        labels = example.candidates
        log_probs, after_rule = (dict(zip(labels, row[: len(labels)].tolist(), strict=True)) for row in (raw, after))
        answer = labels[int(after.argmax())]
        if rule.threshold is not None:
            answer = LABEL_SEPARATOR.join(labels_above(after_rule, rule.threshold))
        predictions.append(Prediction(answer, log_probs, after_rule))
    return predictions


def copy_system(copy: Callable[[Example], str], note: str) -> System:
    """A rule that copies the answer from the example's text."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        return [Prediction(copy(example), None, None) for example in examples]

    return System(predict, note, None)


def classifier_system(fitted: FittedClassifier) -> System:
    """A classifier that answers with the most probable label."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        return _most_probable(fitted.classify(examples, progress))

    return System(predict, fitted.note, None, tuple(_most_probable(fitted.out_of_fold)))


def blend_system(
    simple: Sequence[EvalRecord], tuned: EvalRecord, split: Split, test: Sequence[Example], seed: int
) -> System:
    """A log-linear mix of the simple classifiers and the tuned model.

    The weights of the classifiers among one another are fitted to their answers to the training examples, each given
    without that example; the weights of that mix and of the tuned model to the validation examples. Answers to the
    validation examples are cross-fitted. Raises NotMeasurable without validation examples.
    """
    labels = split.labels
    if not split.validation:
        raise NotMeasurable("the weights need validation examples")

    def stacked(records: Sequence[EvalRecord], part: str) -> np.ndarray:
        return as_log_probs([[p.probabilities or {} for p in getattr(r, part)] for r in records], labels)

    def targets(examples: Sequence[Example]) -> np.ndarray:
        return np.array([labels.index(e.answer) for e in examples], dtype=np.int64)

    among = fit_weights(stacked(simple, "training"), targets(split.train)) if simple else np.zeros(0)
    parts = {}
    for part in ("validation", "test"):
        pair = [mix(stacked(simple, part), among)] if simple else []
        parts[part] = np.stack([*pair, mix(stacked([tuned], part), np.ones(1))])
    on_validation = targets(split.validation)
    weights = fit_weights(parts["validation"], on_validation)
    mixed = {
        "validation": cross_fitted(parts["validation"], on_validation, seed),
        "test": mix(parts["test"], weights),
    }

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        rows_EL = np.exp(mixed["test" if examples is test else "validation"])
        return _most_probable([dict(zip(labels, row, strict=True)) for row in rows_EL.tolist()])

    shares = [weights[0] * share for share in among] if simple else []
    named = zip([r.name for r in (*simple, tuned)], [*shares, weights[-1]], strict=True)
    return System(predict, "weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in named), None)


def _most_probable(rows: Sequence[dict[str, float]]) -> list[Prediction]:
    return [Prediction(max(row, key=lambda label: row[label]), None, row) for row in rows]


def shots_that_fit(
    shots: Sequence[Example], examples: Sequence[Example], renderer: Renderer, limit: int
) -> tuple[Example, ...]:
    """The largest number of leading shots with which every example stays within ``limit`` tokens.

    Checks only the 20 examples with the longest text.
    """
    longest = sorted(examples, key=lambda e: sum(len(m.content) for m in e.messages), reverse=True)[:20]
    for count in range(len(shots), 0, -1):
        leading = shots[:count]
        if all(example_length(with_shots(e, leading), renderer) + EXTRA_TOKENS <= limit for e in longest):
            return tuple(leading)
    return ()
