"""Checks for answers that stand in the prompt: columns that equal or encode the answer, and answers in the texts."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import fmean

from loratory.checks.material import Material, finding
from loratory.checks.similar import TOKENS, normalized
from loratory.data import LABEL_SEPARATOR, Example, Finding
from loratory.metrics import percent

FEWEST_ROWS = 20  # in fewer rows, a column may agree with the answers by chance
EQUAL = 0.98  # of the rows, in which a column equals the answer
ENCODED = 0.95  # mean over the labels of the share of rows in which a column's value stands for the label
MOST_VALUES = 2  # values of a column for each label, so that they stand for the labels
OFTEN = 0.8  # of the rows, that contain their own label
TIMES_CHANCE = 3
ROWS_LOOKED_AT, LABELS_LOOKED_AT = 1_000, 100


def leaking_columns(material: Material) -> Iterator[Finding]:
    for column, how in leaks(material).items():
        message = f"the prompt shows the column {column!r}, which {how}"
        fix = "leave it out of the prompt, unless it is known when the model is used"
        yield finding("leaking_column", "error", f"{message}: {fix}", material.train[:3], len(material.train))


def leaks(material: Material) -> dict[str, str]:
    """The columns that give the answer away, and how they do."""
    examples = [e for e in material.train if e.cells and e.answers]
    if len(examples) < FEWEST_ROWS:
        return {}
    answers = [LABEL_SEPARATOR.join(e.answers) for e in examples]
    found = {}
    for i, column in enumerate(material.split.columns):
        cells = [e.cells[i].strip() for e in examples]
        if (share := _equal_share(cells, examples, answers, material.task)) >= EQUAL:
            found[column] = f"is the answer in {percent(share)} of the training examples"
        # The only column of a prompt is the question itself, even if each answer has but one question.
        elif len(material.split.columns) > 1 and material.task == "classification" and _encodes(cells, answers):
            found[column] = "has one value for each label"
    return found


def _equal_share(cells: Sequence[str], examples: Sequence[Example], answers: Sequence[str], task: str) -> float:
    """The share of cells that are the answer or, for the task choice, its number from 0 or from 1."""
    shares = [fmean(normalized(c) == normalized(a) for c, a in zip(cells, answers, strict=True))]
    if task == "choice":
        numbers = [e.candidates.index(e.answer) for e in examples]
        shares += [fmean(c == str(n + first) for c, n in zip(cells, numbers, strict=True)) for first in (0, 1)]
    return max(shares)


def _encodes(cells: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether a column's values stand one for one for the labels, in nearly all rows of each label."""
    values, labels = Counter(cells), Counter(answers)
    if not 2 <= len(values) <= MOST_VALUES * len(labels):
        return False
    pairs = Counter(zip(cells, answers, strict=True))
    label_of: dict[str, str] = {}
    value_of: dict[str, str] = {}
    for (value, label), _ in pairs.most_common():
        label_of.setdefault(value, label)
        value_of.setdefault(label, value)
    stands = [pairs[value_of[label], label] / count for label, count in labels.items()]
    both_ways = all(label_of[value] == label for label, value in value_of.items())
    return both_ways and sum(stands) / len(stands) >= ENCODED


def answers_in_prompt(material: Material) -> Iterator[Finding]:
    """Labels that stand in the text of their own rows much more often than in those of others."""
    labels = material.split.labels
    if not material.has_labels or len(labels) < 2:
        return
    leaking = leaks(material)
    kept = [i for i, column in enumerate(material.split.columns) if column not in leaking]
    step = max(1, len(material.train) // ROWS_LOOKED_AT)
    examples = [e for e in material.train[::step] if e.cells and e.answers][:ROWS_LOOKED_AT]
    if len(examples) < FEWEST_ROWS:
        return
    words = {label: _words(label) for label in labels}
    compared = labels[:: -(-len(labels) // LABELS_LOOKED_AT)]
    own: dict[str, list[bool]] = defaultdict(list)
    hits, others = [], []
    for example in examples:
        text = _words("\n".join(example.cells[i] for i in kept))
        own_hit = all(words[label] in text for label in example.answers)
        own["; ".join(example.answers)].append(own_hit)
        hits += [example] if own_hit else []
        different = [words[label] in text for label in compared if label not in example.answers]
        others += [sum(different) / len(different)] if different else []
    # The mean over the labels: a frequent label that is a common word does not count.
    rate, chance = fmean(map(fmean, own.values())), fmean(others or [0.0])
    if rate >= OFTEN and rate >= TIMES_CHANCE * chance:
        message = (
            f"the text of {percent(rate)} of the training examples contains their label, of others {percent(chance)}"
        )
        yield finding("answer_in_prompt", "warning", message, hits, len(hits))


def _words(text: str) -> str:
    """The words and signs of a text, each between spaces."""
    return f" {' '.join(TOKENS.findall(normalized(text)))} "
