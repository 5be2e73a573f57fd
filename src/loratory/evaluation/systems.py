"""The kinds of system: a prompted model, scored labels, a classifier, a rule that copies."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from loratory.data import LABEL_SEPARATOR, LABELLED, Example, Tests, with_shots
from loratory.evaluation.baselines import Classifier
from loratory.evaluation.evaluate_system import Prediction, System
from loratory.evaluation.sandbox import run_program
from loratory.events import ProgressCallback
from loratory.metrics import parse_label, set_f1
from loratory.text import Renderer, example_length, render_prompt, tokenize, tokenizer_round_trip, word
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

GENERATED_AT_ONCE = 4  # times as many tokens as in training, whose gradients take most of the memory
THRESHOLDS_TRIED = 200
SPARE_TOKENS = 8  # room for quotes, stars or a full stop around a free answer


@dataclass(frozen=True)
class PromptedModel:
    """A model with what it takes to put questions to it."""

    model: nn.Module
    renderer: Renderer
    layout: Layout
    shots: tuple[Example, ...]
    """Solved examples shown before each question."""
    longest: int
    """Tokens of the longest answer to expect."""
    token_budget: int


def generation_system(prompting: PromptedModel, note: str | None) -> System:
    """Free generation; where there are candidates, the answer goes through the one parser."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        r = prompting.renderer
        prompts = [render_prompt(with_shots(e, prompting.shots).messages, r, e.source) for e in examples]
        ids = [p.token_ids for p in prompts]
        budget = GENERATED_AT_ONCE * prompting.token_budget
        texts = generate(prompting.model, ids, r, prompting.longest + SPARE_TOKENS, budget, progress)
        answers = [parse_label(text, e.candidates) or text.strip() for text, e in zip(texts, examples, strict=True)]
        return [Prediction(answer, None, None) for answer in answers]

    return System(predict, note, None)


def fill_mask_system(prompting: PromptedModel, tuned: bool) -> System:
    """Puts words into the blank of each text. ``tuned``: the model knows how an answer ends."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        p = prompting
        texts = fill_slots(p.model, p.renderer, examples, p.longest, tuned, p.layout, p.token_budget, progress)
        return [
            Prediction(_restore_spelling(t, e, p.renderer), None, None) for t, e in zip(texts, examples, strict=True)
        ]

    return System(predict, None, None)


def _restore_spelling(text: str, example: Example, renderer: Renderer) -> str:
    """The label, or the right answer, that a text spells; else the text.

    Many tokenizers of masked language models give back lower case only, and spaces around signs.
    """
    spelled = {tokenizer_round_trip(word(a, renderer), renderer): a for a in example.candidates or example.answers}
    found = parse_label(text, list(spelled)) if example.candidates else text
    return spelled.get(text if found is None else found, text)


def masked_text_system(prompting: PromptedModel) -> System:
    """Finds hidden words again, and says how probable each word of a text is while it is hidden."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        p = prompting
        hidden = [tokenize(e, p.renderer) for e in examples]
        turns = group_log_probs(p.model, hidden, len(hidden), p.layout, p.token_budget, progress)
        texts = predict_masked_tokens(p.model, p.renderer, [own[0] for own in hidden], p.layout, p.token_budget)
        return [Prediction(text, None, None, tuple(own)) for text, own in zip(texts, turns, strict=True)]

    return System(predict, None, None)


def conversation_system(prompting: PromptedModel) -> System:
    """Writes the last turn of each conversation, and says how probable the right turns are."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        p = prompting
        right = (tokenize(e, p.renderer) for e in examples)
        turns = group_log_probs(p.model, right, len(examples), p.layout, p.token_budget, progress)
        written = generation_system(p, None).predict(examples, progress)
        return [dataclasses.replace(w, turns=tuple(own)) for w, own in zip(written, turns, strict=True)]

    return System(predict, None, None)


def code_system(prompting: PromptedModel, seconds: float | None, note: str | None) -> System:
    """Writes programs, and runs each with its example's tests where ``seconds`` says how long it may take."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        written = generation_system(prompting, note).predict(examples, progress)
        found = [dataclasses.replace(w, answer=extract_code(w.answer)) for w in written]
        if seconds is None:
            return found
        tested = zip(found, examples, strict=True)
        outcomes = [run_program(*candidate_programs(p.answer, e.tests), seconds=seconds) for p, e in tested]
        return [dataclasses.replace(p, failure=o.reason) for p, o in zip(found, outcomes, strict=True)]

    return System(predict, note, None)


def extract_code(answer: str) -> str:
    """The first block of code of an answer that has one, else the answer."""
    found = re.search(r"```[\w+-]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return found[1].rstrip() if found else answer


def candidate_programs(answer: str, tests: Tests | None) -> list[str]:
    """The sources that may test an answer, the likeliest first: alone where it defines the function that is asked for,
    or there is nothing to continue; else behind the prefix, where its first line may have lost its indentation."""
    assert tests, "only examples with tests are run"
    whole = not tests.prefix or (tests.name and re.search(rf"^\s*def {re.escape(tests.name)}\b", answer, re.MULTILINE))
    starts = [""] if whole else [tests.prefix, tests.prefix + "    "]
    return [f"{start}{answer}\n{tests.after}" for start in starts]


def label_scoring_system(
    prompting: PromptedModel, validation: Sequence[Example], task: str, note: str | None, progress: ProgressCallback
) -> System:
    """Scores every candidate; the rule, and for sets of labels the threshold, is the best on validation."""

    def score(examples: Sequence[Example], progress: ProgressCallback) -> LabelScores:
        shown = [with_shots(e, prompting.shots) for e in examples]
        p = prompting
        return label_log_probs(p.model, p.renderer, shown, p.layout, p.token_budget, progress)

    on_validation = score(validation, progress)
    rule = fit_rule(on_validation, [e.candidates.index(e.answer) for e in validation], task in LABELLED)
    if task == "labels":
        chosen = choices(on_validation, rule, validation) if validation else []
        rule = dataclasses.replace(rule, threshold=fit_threshold(chosen, validation))

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        scores = on_validation if examples is validation else score(examples, progress)
        return choices(scores, rule, examples)

    return System(predict, note, rule)


def fit_threshold(predictions: Sequence[Prediction], validation: Sequence[Example]) -> float:
    """The probability from which on labels are chosen that gives the best mean F1 of the sets; 0.5 without examples."""
    tried = sorted({p for prediction in predictions for p in (prediction.probabilities or {}).values()})
    tried = tried[:: max(1, len(tried) // THRESHOLDS_TRIED)] or [0.5]

    def score(threshold: float) -> float:
        pairs = zip(predictions, validation, strict=True)
        return sum((set_f1(labels_above(p.probabilities or {}, threshold), e.answers) for p, e in pairs), start=0.0)

    return max(tried, key=score)


def labels_above(probabilities: Mapping[str, float], threshold: float) -> tuple[str, ...]:
    """The labels of at least ``threshold``, sorted; the most probable one where there are none."""
    found = tuple(sorted(label for label, p in probabilities.items() if p >= threshold))
    return found or (max(probabilities, key=lambda label: probabilities[label]),)


def multilabel_classifier_system(
    classifier: Classifier, note: str | None, validation: Sequence[Example], progress: ProgressCallback
) -> System:
    """A classifier that gives each label a probability of its own; the threshold is the best on validation."""
    found = [Prediction("", None, row) for row in classifier(validation, progress)] if validation else []
    threshold = fit_threshold(found, validation)

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        rows = classifier(examples, progress)
        return [Prediction(LABEL_SEPARATOR.join(labels_above(row, threshold)), None, row) for row in rows]

    return System(predict, f"{note}; labels from {threshold:.2f} on", None)


def choices(scores: LabelScores, rule: Rule, examples: Sequence[Example]) -> list[Prediction]:
    """The candidate, or the set of labels, that the rule chooses for each example."""
    found = []
    for example, raw, after in zip(examples, scores.log_probs_EL, probabilities(scores, rule), strict=True):
        own = example.candidates
        log_probs, after_rule = (dict(zip(own, row[: len(own)].tolist(), strict=True)) for row in (raw, after))
        answer = own[int(after.argmax())]
        if rule.threshold is not None:
            answer = LABEL_SEPARATOR.join(labels_above(after_rule, rule.threshold))
        found.append(Prediction(answer, log_probs, after_rule))
    return found


def copy_system(copy: Callable[[Example], str], note: str) -> System:
    """A rule that makes the answer from the example's text."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        return [Prediction(copy(example), None, None) for example in examples]

    return System(predict, note, None)


def classifier_system(classifier: Classifier, note: str | None) -> System:
    """A classifier that gives label probabilities."""

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[Prediction]:
        rows = classifier(examples, progress)
        return [Prediction(max(row, key=lambda label: row[label]), None, row) for row in rows]

    return System(predict, note, None)


def shots_that_fit(
    shots: Sequence[Example], examples: Sequence[Example], renderer: Renderer, limit: int
) -> tuple[Example, ...]:
    """As many of the shots as leave every example within ``limit`` tokens, the same number for all."""
    longest = sorted(examples, key=lambda e: sum(len(m.content) for m in e.messages), reverse=True)[:20]
    for count in range(len(shots), 0, -1):
        shown = shots[:count]
        if all(example_length(with_shots(e, shown), renderer) + SPARE_TOKENS <= limit for e in longest):
            return tuple(shown)
    return ()
