"""The table of all checks, and what a run does with what they find."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from loratory.checks import balance, leaks, rendered, repetition
from loratory.checks.material import Material
from loratory.data import Finding
from loratory.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Check:
    """One kind of finding."""

    name: str
    severity: str
    """The severity of the finding and, if there are several, when each applies."""
    finds: str
    """What it means, in one sentence."""
    find: Callable[[Material], Iterator[Finding]] | None
    """The function that looks for it. None: it is found while the data is read, or by the function of the row above."""


CHECKS = (
    Check("missing_answers", "note; in `loratory check` an error unless `data.missing` is `\"skip\"`",
          "Rows without an answer, which were set aside.", None),
    Check("empty_prompts", "note; in `loratory check` an error unless `data.missing` is `\"skip\"`",
          "Rows in which every column that the prompt shows is empty, which were set aside.", None),
    Check("look_alike_labels", "warning",
          "Labels that differ only in case, white space, invisible characters, Unicode form, the kind of quotation "
          "mark or dash, or punctuation at their end.", None),
    Check("normalized_labels", "note",
          "Rows whose label got the most frequent spelling, with `data.normalize_labels`.", None),
    Check("label_looks_missing", "warning", "A label such as `None`, `-`, `?` or `#REF!`.", None),
    Check("duplicates_in_train", f"warning above {repetition.MANY:.0%} of the training examples, otherwise note",
          "Training examples with the same text as an earlier one, apart from case and white space.",
          repetition.repeated_in_train),
    Check("near_duplicates_in_train", f"warning above {repetition.MANY:.0%} of the training examples, otherwise note",
          "Training examples that are nearly the same as an earlier one.", None),
    Check("test_in_train",
          f"error if the test set is a file of its own and at least {repetition.MOST_SHARED:.0%} of it is in train, "
          "otherwise warning",
          "Test examples with the same text as a training example, apart from case and white space.",
          repetition.test_in_train),
    Check("test_near_train", "warning", "Test examples that are nearly the same as a training example.", None),
    Check("conflicting_answers", "warning", "Texts that occur several times, with different labels or choices.",
          repetition.conflicting_answers),
    Check("leaking_column", "error",
          f"A column that the prompt shows and that is the answer in {leaks.EQUAL:.0%} of the training examples, or "
          "has one value for each label.",
          leaks.leaking_columns),
    Check("answer_in_prompt", "warning",
          f"At least {leaks.OFTEN:.0%} of the training examples contain their own label, and "
          f"{leaks.TIMES_CHANCE} times as many as contain another one.",
          leaks.answers_in_prompt),
    Check("few_examples", "warning", f"Fewer than {balance.FEW_EXAMPLES} examples in all.", balance.few_examples),
    Check("imbalanced_labels", "warning",
          f"One label has more than {balance.LARGEST_SHARE:.0%} of the training examples.", balance.imbalanced_labels),
    Check("rare_labels", "warning", f"Labels with fewer than {balance.FEWEST_EXAMPLES} training examples.",
          balance.rare_labels),
    Check("answers_are_sets", "warning",
          "Labels of a classification that look like sets of labels, such as `billing, shipping`.",
          balance.answers_are_sets),
    Check("labels_begin_alike", "note", "Labels that begin with another label, such as `1` and `10`.",
          balance.labels_begin_alike),
    Check("labels_share_tokens", "note", "Labels with the same first token.", balance.labels_share_tokens),
    Check("prompt_not_searched", "note",
          "The settings ask for a search for the prompt (`search = \"on\"`), which is not possible here.", None),
    Check("labels_not_in_prompt", "warning",
          "The prompt does not name some of the labels, so prompting cannot know them, and the comparison favors the "
          "tuned model: use `{labels}`.",
          rendered.labels_in_prompt),
    Check("special_tokens_in_data", "warning",
          "Examples with the text of a special token, such as `<|im_end|>`, which the model reads as that token.",
          rendered.special_tokens),
    Check("overlong", "error if `data.overlong` is `\"error\"`, otherwise note",
          "Examples that are longer than the model's context. Only `loratory check` reports this name.",
          rendered.overlong),
    Check("overlong_dropped", "note", "Examples that were dropped, as `data.overlong` says.", None),
    Check("overlong_cut", "note", "Examples whose prompt was cut, as `data.overlong` says.", None),
    Check("template_differs", "note",
          "The chat template renders a prompt with its answer differently from the prompt alone.",
          rendered.template_differs),
)  # fmt: skip

SET_ASIDE = ("missing_answers", "empty_prompts")
# Errors that a setting turns off, instead of a waiver.
DECIDED = {
    "missing_answers": 'set [data] missing = "skip"',
    "empty_prompts": 'set [data] missing = "skip"',
    "overlong": 'set [data] overlong = "cut_prompt" or "drop"',
}


def check_data(material: Material, missing: str = "skip") -> list[Finding]:
    """What reading the data and all checks found, errors first.

    With ``missing`` = "error", rows that were set aside because of missing values are an error.
    """
    read = [
        dataclasses.replace(f, severity="error", message=f'{f.message}; a run needs [data] missing = "skip" for that')
        if missing == "error" and f.name in SET_ASIDE
        else f
        for f in material.split.findings
    ]
    found = [f for check in CHECKS if check.find is not None for f in check.find(material)]
    order = ("error", "warning", "note")
    return sorted([*read, *found], key=lambda f: order.index(f.severity))


def with_waivers(findings: Sequence[Finding], waive: Sequence[str]) -> list[Finding]:
    """The findings, with errors that ``waive`` names as warnings.

    Raises UserError if a name is not that of a finding, or of one that another setting decides about.
    """
    names = list(dict.fromkeys([*(check.name for check in CHECKS), *(f.name for f in findings)]))
    for name in waive:
        if name not in names:
            fix = did_you_mean(name, names) or "docs/data-checks.md lists all names"
            raise UserError("Unknown name of a finding", "[data] waive", found=repr(name), fix=fix)
        if name in DECIDED:
            raise UserError("This finding cannot be waived", "[data] waive", found=repr(name), fix=DECIDED[name])
    return [
        dataclasses.replace(f, severity="warning", message=f"{f.message} (waived)")
        if f.severity == "error" and f.name in waive
        else f
        for f in findings
    ]


def refuse_errors(findings: Sequence[Finding], waive: Sequence[str]) -> None:
    """Raises UserError if there are errors among the findings; ``waive`` are the names that are waived already."""
    errors = [f for f in findings if f.severity == "error"]
    if not errors:
        return
    names = ", ".join(f'"{name}"' for name in dict.fromkeys([*waive, *(f.name for f in errors)]))
    raise UserError(
        "The result would mean nothing with this data",
        ", ".join(errors[0].places) or "[data]",
        found="; ".join(f"{f.message} ({f.name})" for f in errors),
        fix=f"correct the data or the prompt or, to accept this, set [data] waive = [{names}]",
    )
