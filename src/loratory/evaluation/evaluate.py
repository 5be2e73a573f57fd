"""One function that measures every system, before and after, on the same examples.

A system is anything that answers examples: a prompted model, a scored label set, a linear model, the tuned model.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from loratory.data.examples import BETWEEN_LABELS, LABELLED, Example, Tests, with_shots
from loratory.evaluation.baselines import Classifier
from loratory.evaluation.sandbox import run_program
from loratory.metrics.classification import parse_label, set_f1
from loratory.metrics.tasks import TASKS
from loratory.storage.run_directory import write_json, write_json_lines
from loratory.text.context import example_length
from loratory.text.rendering import completion_ids, render_prompt, respelled, tokenize, word
from loratory.text.template import Renderer
from loratory.tree.attention import Layout
from loratory.tree.fill_mask import fill_blanks, restore
from loratory.tree.generation import Progress, generate
from loratory.tree.scoring import LabelScores, Rule, fit_rule, label_log_probs, probabilities, trained_log_probs

ON_VALIDATION, ON_TEST = "predictions/validation", "predictions"
GENERATED_AT_ONCE = 4  # times as many tokens as in training, whose gradients take most of the memory
THRESHOLDS_TRIED = 200
LONGEST_TRIED = 100  # texts that are measured in tokens: those of most characters
SPARE_TOKENS = 8  # room for quotes, stars or a full stop around a free answer


@dataclass(frozen=True)
class Prediction:
    """A system's answer to one example."""

    answer: str
    """The label, or for a free answer that is no label the text as it came."""
    log_probs: dict[str, float] | None
    """Natural log-probability of each label as the model gives it; only where labels were scored."""
    probabilities: dict[str, float] | None
    """What the system reports after its rule; only where it gives probabilities."""
    turns: tuple[tuple[float, int], ...] | None = None
    """Log-probability and number of tokens of each right assistant turn, or of each hidden part of a text."""
    failure: str | None = None
    """How the answer failed its tests, empty if it passed; only where tests were run."""


@dataclass(frozen=True)
class System:
    """Something that answers examples."""

    predict: Callable[[Sequence[Example], Progress], list[Prediction]]
    note: str | None
    rule: Rule | None
    """How it chooses among labels; None where it does not score them."""


@dataclass(frozen=True)
class EvalRecord:
    """What a system answered."""

    name: str
    note: str | None
    rule: Rule | None
    validation: tuple[Prediction, ...]
    test: tuple[Prediction, ...]
    seconds: float
    """Making the system and both sets."""
    seconds_per_example: float
    """On the test set."""


def evaluate(
    name: str,
    make: Callable[[Progress], System],
    validation: Sequence[Example],
    test: Sequence[Example],
    progress: Progress,
) -> EvalRecord:
    """Makes the system and has it answer both sets."""
    started = time.perf_counter()
    system = make(progress)
    on_validation = system.predict(validation, progress) if validation else []
    before_test = time.perf_counter()
    on_test = system.predict(test, progress)
    ended = time.perf_counter()
    each = (ended - before_test) / max(len(test), 1)
    return EvalRecord(
        name, system.note, system.rule, tuple(on_validation), tuple(on_test), ended - started, each
    )  # fmt: skip


# ---- the kinds of system ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompting:
    """A model with what it takes to put questions to it."""

    model: nn.Module
    renderer: Renderer
    layout: Layout
    shots: tuple[Example, ...]
    """Solved examples shown before each question."""
    longest: int
    """Tokens of the longest answer to expect."""
    token_budget: int


def longest_answer(examples: Sequence[Example], renderer: Renderer) -> int:
    """Tokens of the longest candidate or answer of the examples, its ending included."""
    if renderer.masked:
        return renderer.masks
    texts = {text for e in examples for text in e.candidates or e.answers}
    prompt = render_prompt(examples[0].messages, renderer, examples[0].source)
    likely = sorted(texts, key=len, reverse=True)[:LONGEST_TRIED]
    return max((len(completion_ids(prompt, text, renderer)[0]) for text in likely), default=1)


def answering(prompting: Prompting, note: str | None) -> System:
    """Free generation; where there are candidates, the answer goes through the one parser."""

    def predict(examples: Sequence[Example], progress: Progress) -> list[Prediction]:
        r = prompting.renderer
        prompts = [render_prompt(with_shots(e, prompting.shots).messages, r, e.source) for e in examples]
        ids = [p.token_ids for p in prompts]
        budget = GENERATED_AT_ONCE * prompting.token_budget
        texts = generate(prompting.model, ids, r, prompting.longest + SPARE_TOKENS, budget, progress)
        answers = [parse_label(text, e.candidates) or text.strip() for text, e in zip(texts, examples, strict=True)]
        return [Prediction(answer, None, None) for answer in answers]

    return System(predict, note, None)


def filling(prompting: Prompting, tuned: bool) -> System:
    """Puts words into the blank of each text. ``tuned``: the model knows how an answer ends."""

    def predict(examples: Sequence[Example], progress: Progress) -> list[Prediction]:
        p = prompting
        texts = fill_blanks(p.model, p.renderer, examples, p.longest, tuned, p.layout, p.token_budget, progress)
        return [Prediction(_as_written(t, e, p.renderer), None, None) for t, e in zip(texts, examples, strict=True)]

    return System(predict, None, None)


def _as_written(text: str, example: Example, renderer: Renderer) -> str:
    """The label, or the right answer, that a text spells; else the text.

    Many tokenizers of masked language models give back lower case only, and spaces around signs.
    """
    spelled = {respelled(word(a, renderer), renderer): a for a in example.candidates or example.answers}
    found = parse_label(text, list(spelled)) if example.candidates else text
    return spelled.get(text if found is None else found, text)


def restoring(prompting: Prompting) -> System:
    """Finds hidden words again, and says how probable each word of a text is while it is hidden."""

    def predict(examples: Sequence[Example], progress: Progress) -> list[Prediction]:
        p = prompting
        hidden = [tokenize(e, p.renderer) for e in examples]
        turns = trained_log_probs(p.model, hidden, len(hidden), p.layout, p.token_budget, progress)
        texts = restore(p.model, p.renderer, [own[0] for own in hidden], p.layout, p.token_budget)
        return [Prediction(text, None, None, tuple(own)) for text, own in zip(texts, turns, strict=True)]

    return System(predict, None, None)


def conversing(prompting: Prompting) -> System:
    """Writes the last turn of each conversation, and says how probable the right turns are."""

    def predict(examples: Sequence[Example], progress: Progress) -> list[Prediction]:
        p = prompting
        right = (tokenize(e, p.renderer) for e in examples)
        turns = trained_log_probs(p.model, right, len(examples), p.layout, p.token_budget, progress)
        written = answering(p, None).predict(examples, progress)
        return [dataclasses.replace(w, turns=tuple(own)) for w, own in zip(written, turns, strict=True)]

    return System(predict, None, None)


def programming(prompting: Prompting, seconds: float | None, note: str | None) -> System:
    """Writes programs, and runs each with its example's tests where ``seconds`` says how long it may take."""

    def predict(examples: Sequence[Example], progress: Progress) -> list[Prediction]:
        written = answering(prompting, note).predict(examples, progress)
        found = [dataclasses.replace(w, answer=unfenced(w.answer)) for w in written]
        if seconds is None:
            return found
        tested = zip(found, examples, strict=True)
        outcomes = [run_program(*programs(p.answer, e.tests), seconds=seconds) for p, e in tested]
        return [dataclasses.replace(p, failure=o.why) for p, o in zip(found, outcomes, strict=True)]

    return System(predict, note, None)


def unfenced(answer: str) -> str:
    """The first block of code of an answer that has one, else the answer."""
    found = re.search(r"```[\w+-]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return found[1].rstrip() if found else answer


def programs(answer: str, tests: Tests | None) -> list[str]:
    """The sources that may test an answer, the likeliest first: alone where it defines the function that is asked for,
    or there is nothing to continue; else behind the prefix, where its first line may have lost its indentation."""
    assert tests, "only examples with tests are run"
    whole = not tests.prefix or (tests.name and re.search(rf"^\s*def {re.escape(tests.name)}\b", answer, re.MULTILINE))
    starts = [""] if whole else [tests.prefix, tests.prefix + "    "]
    return [f"{start}{answer}\n{tests.after}" for start in starts]


def choosing(
    prompting: Prompting, validation: Sequence[Example], task: str, note: str | None, progress: Progress
) -> System:
    """Scores every candidate; the rule, and for sets of labels the threshold, is the best on validation."""

    def score(examples: Sequence[Example], progress: Progress) -> LabelScores:
        shown = [with_shots(e, prompting.shots) for e in examples]
        p = prompting
        return label_log_probs(p.model, p.renderer, shown, p.layout, p.token_budget, progress)

    on_validation = score(validation, progress)
    rule = fit_rule(on_validation, [e.candidates.index(e.answer) for e in validation], task in LABELLED)
    if task == "labels":
        chosen = choices(on_validation, rule, validation) if validation else []
        rule = dataclasses.replace(rule, threshold=fit_threshold(chosen, validation))

    def predict(examples: Sequence[Example], progress: Progress) -> list[Prediction]:
        scores = on_validation if examples is validation else score(examples, progress)
        return choices(scores, rule, examples)

    return System(predict, note, rule)


def fit_threshold(predictions: Sequence[Prediction], validation: Sequence[Example]) -> float:
    """The probability from which on labels are chosen that gives the best mean F1 of the sets; 0.5 without examples."""
    tried = sorted({p for prediction in predictions for p in (prediction.probabilities or {}).values()})
    tried = tried[:: max(1, len(tried) // THRESHOLDS_TRIED)] or [0.5]

    def worth(threshold: float) -> float:
        pairs = zip(predictions, validation, strict=True)
        return sum((set_f1(marked(p.probabilities or {}, threshold), e.answers) for p, e in pairs), start=0.0)

    return max(tried, key=worth)


def marked(probabilities: Mapping[str, float], threshold: float) -> tuple[str, ...]:
    """The labels of at least ``threshold``, sorted; the most probable one where there are none."""
    found = tuple(sorted(label for label, p in probabilities.items() if p >= threshold))
    return found or (max(probabilities, key=lambda label: probabilities[label]),)


def classifying_sets(
    classifier: Classifier, note: str | None, validation: Sequence[Example], progress: Progress
) -> System:
    """A classifier that gives each label a probability of its own; the threshold is the best on validation."""
    found = [Prediction("", None, row) for row in classifier(validation, progress)] if validation else []
    threshold = fit_threshold(found, validation)

    def predict(examples: Sequence[Example], progress: Progress) -> list[Prediction]:
        rows = classifier(examples, progress)
        return [Prediction(BETWEEN_LABELS.join(marked(row, threshold)), None, row) for row in rows]

    return System(predict, f"{note}; labels from {threshold:.2f} on", None)


def choices(scores: LabelScores, rule: Rule, examples: Sequence[Example]) -> list[Prediction]:
    """The candidate, or the set of labels, that the rule chooses for each example."""
    found = []
    for example, raw, after in zip(examples, scores.log_probs_EL, probabilities(scores, rule), strict=True):
        own = example.candidates
        log_probs, after_rule = (dict(zip(own, row[: len(own)].tolist(), strict=True)) for row in (raw, after))
        answer = own[int(after.argmax())]
        if rule.threshold is not None:
            answer = BETWEEN_LABELS.join(marked(after_rule, rule.threshold))
        found.append(Prediction(answer, log_probs, after_rule))
    return found


def copying(copy: Callable[[Example], str], note: str) -> System:
    """A rule that makes the answer from the example's text."""

    def predict(examples: Sequence[Example], progress: Progress) -> list[Prediction]:
        return [Prediction(copy(example), None, None) for example in examples]

    return System(predict, note, None)


def classifying(classifier: Classifier, note: str | None) -> System:
    """A classifier that gives label probabilities."""

    def predict(examples: Sequence[Example], progress: Progress) -> list[Prediction]:
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


# ---- on disk ---------------------------------------------------------------------------------------------------------


def save_record(
    run: Path, record: EvalRecord, validation: Sequence[Example], test: Sequence[Example], task: str
) -> None:
    """predictions/<name>.jsonl, predictions/validation/<name>.jsonl and, last, systems/<name>.json."""
    for folder, examples, predictions in (
        (ON_VALIDATION, validation, record.validation),
        (ON_TEST, test, record.test),
    ):
        write_json_lines(run / folder / f"{record.name}.jsonl", lines(examples, predictions, task))
    meta = {key: getattr(record, key) for key in ("name", "note", "seconds", "seconds_per_example")}
    meta["rule"] = record.rule.name if record.rule else None
    meta["prior"] = list(record.rule.prior) if record.rule else None
    meta["threshold"] = record.rule.threshold if record.rule else None
    write_json(run / "systems" / f"{record.name}.json", meta)


def lines(examples: Sequence[Example], predictions: Sequence[Prediction], task: str) -> list[dict]:
    """Predictions as the run directory keeps them."""
    return [_line(i, e, p, task) for i, (e, p) in enumerate(zip(examples, predictions, strict=True))]


def _line(index: int, example: Example, prediction: Prediction, task: str) -> dict:
    expected = BETWEEN_LABELS.join(example.answers) if task == "labels" else example.answer
    line = {"index": index, "expected": expected, **dataclasses.asdict(prediction)}
    right = (expected,) if task == "labels" else example.answers
    line["correct"] = prediction.answer in right if prediction.failure is None else not prediction.failure
    line = {key: value for key, value in line.items() if value is not None or key not in ("turns", "failure")}
    if not TASKS[task].counts:
        line["worth"] = TASKS[task].worth(line, example.answers)
    return line


def headline(examples: Sequence[Example], predictions: Sequence[Prediction], task: str) -> tuple[str, float]:
    """The name of the task's headline, and its value."""
    found = lines(examples, predictions, task)
    worth = [TASKS[task].worth(line, e.answers) for line, e in zip(found, examples, strict=True)]
    return TASKS[task].metric_text, sum(worth) / max(1, len(worth))


def load_record(run: Path, name: str) -> EvalRecord:
    """What ``save_record`` wrote."""
    meta = json.loads((run / "systems" / f"{name}.json").read_text())
    validation, test = (_predictions(run / folder / f"{name}.jsonl") for folder in (ON_VALIDATION, ON_TEST))
    rule = saved_rule(run, name)
    return EvalRecord(name, meta["note"], rule, validation, test, meta["seconds"], meta["seconds_per_example"])


def _predictions(path: Path) -> tuple[Prediction, ...]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return tuple(
        Prediction(row["answer"], row["log_probs"], row["probabilities"], _turns(row.get("turns")), row.get("failure"))
        for row in rows
    )


def _turns(read: list[list] | None) -> tuple[tuple[float, int], ...] | None:
    return None if read is None else tuple((value, count) for value, count in read)


def is_measured(run: Path, name: str) -> bool:
    """Whether a system's answers are complete on disk."""
    return (run / "systems" / f"{name}.json").exists()


def saved_rule(run: Path, name: str) -> Rule | None:
    """The rule of a measured system."""
    meta = json.loads((run / "systems" / f"{name}.json").read_text())
    return Rule(meta["rule"], tuple(meta["prior"]), meta.get("threshold")) if meta["rule"] else None
