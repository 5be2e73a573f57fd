"""Checks of the labels by themselves: how often each occurs, and which begin alike."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from loratory.checks.material import Material, finding
from loratory.data import LABEL_SEPARATOR, Finding, set_separator, spelling_key
from loratory.metrics import TASKS, detectable_difference, percent

FEW_EXAMPLES = 30  # in all
LARGEST_SHARE = 0.8  # of the training examples that a label may have without a finding
FEWEST_EXAMPLES = 5  # of a label in training
SHOWN = 5


def few_examples(material: Material) -> Iterator[Finding]:
    """So few examples that their result says little."""
    count, tested = len(material.examples), len(material.split.test)
    if count >= FEW_EXAMPLES:
        return
    shown = detectable_difference(tested) if TASKS[material.task].is_binary else None
    best = f": even in the best case, no difference below {100 * shown:.0f} points" if shown else ""
    message = f"only {count} examples; so few test examples ({tested}) can show little{best}"
    yield finding("few_examples", "warning", message, [], count)


def imbalanced_labels(material: Material) -> Iterator[Finding]:
    counts = Counter(e.answer for e in material.train) if material.task == "classification" else Counter()
    label, count = max(counts.items(), key=lambda pair: pair[1], default=("", 0))
    if count > LARGEST_SHARE * len(material.train):
        shares = ", ".join(f"{name!r} {percent(n / len(material.train))}" for name, n in counts.most_common(SHOWN))
        message = f"the labels are imbalanced, so that always answering {label!r} looks good: {shares}"
        yield finding("imbalanced_labels", "warning", message, [], count)


def rare_labels(material: Material) -> Iterator[Finding]:
    counts = Counter(label for e in material.train for label in e.answers)
    rare = sorted((counts[label], label) for label in material.split.labels if counts[label] < FEWEST_EXAMPLES)
    if rare:
        names = _listed(f"{label!r} ({count})" for count, label in rare)
        message = (
            f"{len(rare)} {_labels(len(rare), 'has', 'have')} fewer than {FEWEST_EXAMPLES} training examples: {names}"
        )
        involved = [e for e in material.train if {label for _, label in rare}.intersection(e.answers)]
        yield finding("rare_labels", "warning", message, involved, len(rare))


def answers_are_sets(material: Material) -> Iterator[Finding]:
    """Answers of a classification that look like sets of labels."""
    counts = Counter(e.answer for e in material.train) if material.task == "classification" else Counter()
    separator = set_separator(counts)
    if separator:
        combined = [label for label, _ in counts.most_common() if separator in label]
        involved = [e for e in material.train if separator in e.answer]
        setting = "" if separator == LABEL_SEPARATOR.strip() else f' and [data] separator = "{separator}"'
        message = (
            f"{len(combined)} of {len(counts)} labels look like sets of labels: {_listed(map(repr, combined))}; "
            f'each is learned as a label of its own, unless task = "labels"{setting}'
        )
        yield finding("answers_are_sets", "warning", message, involved, len(combined))


def labels_begin_alike(material: Material) -> Iterator[Finding]:
    labels = sorted(material.split.labels)
    beginnings: list[str] = []  # the labels that begin the current one, shortest first
    pairs = []
    for label in labels:
        while beginnings and not label.startswith(beginnings[-1]):
            beginnings.pop()
        # Spellings of one label are a finding of their own.
        if beginnings and spelling_key(beginnings[-1]) != spelling_key(label):
            pairs.append((beginnings[-1], label))
        beginnings.append(label)
    if pairs:
        names = _listed(f"{short!r} and {long!r}" for short, long in pairs)
        begin = f"{len(pairs)} {_labels(len(pairs), 'begins', 'begin')} with another label"
        message = f"{begin}: {names}; a reply that is cut short names the other"
        yield finding("labels_begin_alike", "note", message, [], len(pairs))


def labels_share_tokens(material: Material) -> Iterator[Finding]:
    groups: dict[int, list[str]] = defaultdict(list)
    space = "" if material.renderer.is_masked_lm else material.renderer.leading_space
    for label in material.split.labels:
        ids = material.renderer.encode_part(space + material.renderer.label_words.get(label, label))[0]
        if len(ids):
            groups[int(ids[0])].append(label)
    shared = [group for group in groups.values() if len(group) > 1]
    if shared:
        names = _listed(", ".join(map(repr, group[:SHOWN])) for group in shared)
        count = sum(map(len, shared))
        message = f"{count} labels share their first token with another one: {names}; only later tokens tell them apart"
        yield finding("labels_share_tokens", "note", message, [], count)


def _listed(texts: Iterable[str]) -> str:
    items = list(texts)
    return "; ".join(items[:SHOWN]) + (f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def _labels(count: int, one: str, several: str) -> str:
    """The noun and the verb that go with a number of labels."""
    return f"label {one}" if count == 1 else f"labels {several}"
