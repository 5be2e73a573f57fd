"""Checks for repeated texts: duplicates, test examples in the training data, equal texts with different answers."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from loratory.checks.material import Material, finding
from loratory.data import Example, Finding
from loratory.metrics import percent

MANY = 0.1  # of the training examples: more repeated ones are a warning
MOST_SHARED = 0.5  # of a test file: more examples that are also in train make the result meaningless


def repeated_in_train(material: Material) -> Iterator[Finding]:
    groups = material.train_groups
    repeated = [e for group in groups.values() for e in group[1:]]
    if repeated and not material.folds:  # with folds, the test examples are the same ones
        share = len(repeated) / len(material.train)
        message = f"{len(repeated)} training examples ({percent(share)}) repeat the text of an earlier one"
        yield finding("duplicates_in_train", "warning" if share > MANY else "note", message, repeated)
    near = [e for text, group in groups.items() if text in material.near for e in group[:1]]
    if near:
        share = len(near) / len(material.train)
        message = f"{len(near)} training examples ({percent(share)}) are nearly the same as an earlier one"
        yield finding("near_duplicates_in_train", "warning" if share > MANY else "note", message, near)


def test_in_train(material: Material) -> Iterator[Finding]:
    test, texts = material.split.test, material.texts
    counts = Counter(texts[id(e)] for e in material.train)
    same = [e for e in test if counts[texts[id(e)]] > material.folds]
    if same:
        is_error = material.has_test_file and len(same) >= MOST_SHARED * len(test)
        message = f"{len(same)} of {len(test)} test examples have the same text as a training example"
        yield finding("test_in_train", "error" if is_error else "warning", message, same)
    near = [] if material.folds else [e for e in test if not counts[t := texts[id(e)]] and _is_near(t, material)]
    if near:
        message = f"{len(near)} of {len(test)} test examples are nearly the same as a training example"
        yield finding("test_near_train", "warning", message, near)


def _is_near(text: str, material: Material) -> bool:
    """Whether a text is nearly the same as one of training, if perhaps through others of the test set."""
    while text in material.near:
        text = material.near[text]
        if text in material.train_groups:
            return True
    return False


def conflicting_answers(material: Material) -> Iterator[Finding]:
    if not material.has_labels and material.task != "choice":
        return  # a question may have several right free answers
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in material.examples:
        groups[material.texts[id(example)]].append(example)
    conflicts = [group for group in groups.values() if len({e.answers for e in group}) > 1]
    if conflicts:
        involved = [e for group in conflicts for e in group]
        first = conflicts[0]
        other = next(e for e in first if e.answers != first[0].answers)
        example = f"{'; '.join(first[0].answers)!r} and {'; '.join(other.answers)!r}"
        message = f"{len(conflicts)} texts occur with different answers, in {len(involved)} examples: such as {example}"
        yield finding("conflicting_answers", "warning", message, involved)
