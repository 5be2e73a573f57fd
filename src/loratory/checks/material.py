"""What the checks look at: the split with its texts prepared once for all checks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from loratory.checks.similar import near_earlier, normalized
from loratory.data import FIXED_LABEL_TASKS, TOOLS, Example, Finding, Severity, Split, places_of
from loratory.text import Renderer


@dataclass(frozen=True)
class Material:
    """A split as it was loaded, with what the checks derive from it."""

    split: Split
    renderer: Renderer
    task: str
    folds: bool = False
    """Whether the test examples are all examples, and each fold trains on some of them."""
    has_test_file: bool = False
    """Whether the test set is a file of its own, and not a share of the training data."""
    context: int | None = None
    """The model's context in tokens, if examples that exceed it are to be found."""
    overlong: str = "error"
    """What a run does with examples that exceed the context."""

    @property
    def has_labels(self) -> bool:
        """Whether all rows have the same candidates."""
        return self.task in FIXED_LABEL_TASKS

    @cached_property
    def train(self) -> Sequence[Example]:
        """The examples of training; with folds, all examples."""
        return self.split.test if self.folds else self.split.train

    @cached_property
    def examples(self) -> Sequence[Example]:
        """All examples, each once."""
        return self.split.test if self.folds else (*self.split.train, *self.split.validation, *self.split.test)

    @cached_property
    def texts(self) -> dict[int, str]:
        """The normalized text of each example, by its id."""
        return {id(e): normalized(text_of(e, self.task == "choice")) for e in self.examples}

    @cached_property
    def train_groups(self) -> dict[str, list[Example]]:
        """The examples of training by their normalized text."""
        groups: dict[str, list[Example]] = defaultdict(list)
        for example in self.train:
            groups[self.texts[id(example)]].append(example)
        return groups

    @cached_property
    def near(self) -> dict[str, str]:
        """Maps a normalized text to an earlier, different one that is nearly the same. Training comes before test."""
        texts = list(dict.fromkeys([*self.train_groups, *(self.texts[id(e)] for e in self.split.test)]))
        return {texts[later]: texts[earlier] for later, earlier in near_earlier(texts).items()}


def text_of(example: Example, with_candidates: bool = False) -> str:
    """What distinguishes an example's prompt from others: the cells that it shows, or the turns of a conversation."""
    turns = [m.content for m in example.messages if m.role not in ("system", TOOLS)]
    return "\n".join([*(example.cells or turns), *(example.candidates if with_candidates else ())])


def finding(
    name: str, severity: Severity, message: str, examples: Sequence[Example], count: int | None = None
) -> Finding:
    """A finding with the places of its examples; ``count`` is by default their number."""
    return Finding(name, severity, message, len(examples) if count is None else count, places_of(examples))
