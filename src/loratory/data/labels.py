"""Labels that look alike: spellings of one label that differ in case, white space, invisible characters and such."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from loratory.data.findings import Finding, places_of
from loratory.data.rows import Row

GROUPS_SHOWN = 5
# Python's None written as text, signs for "nothing", and errors of spreadsheets. Not "none": it is a common label.
LOOKS_MISSING = ("None", "-", "?", "#REF!", "#VALUE!", "#DIV/0!")
PLAIN_SIGNS = str.maketrans({**dict.fromkeys("‘’‚‛′`´", "'"), **dict.fromkeys("“”„‟″«»", '"'),
                             **dict.fromkeys("‐‑‒–—―−", "-")})  # fmt: skip
TRAILING = ".,:;!"
NORMALIZE = "[data] normalize_labels = true (or --data.normalize-labels)"
SEPARATORS = (";", "|", ", ")  # of the labels of a set
SHARE_OF_SETS = 0.2  # of the different answers, that shows that they are sets
MOST_WORDS = 4  # of a label in a set; more are a sentence
INVISIBLE = ("Cf", "Cc")  # Unicode categories: zero-width and other format characters, control characters


def spelling_key(label: str) -> str:
    """What all spellings of a label have in common.

    That is its NFKC form without case, invisible characters, punctuation at the end, and white space that is not a
    single space, with plain quotation marks and hyphens. A label of nothing else stays as it is.
    """
    text = unicodedata.normalize("NFKC", label).translate(PLAIN_SIGNS).casefold()
    visible = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in INVISIBLE)
    return re.sub(r"\s+", " ", visible).strip().rstrip(TRAILING).rstrip() or label


def look_alikes(counts: Mapping[str, int]) -> list[list[str]]:
    """The groups of labels that look alike, each with its most frequent spelling first; ties in sorted order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts, key=lambda name: (-counts[name], name)):
        groups[spelling_key(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def normalized_answers(
    rows: Sequence[Row], answers: Mapping[int, tuple[str, ...]]
) -> tuple[dict[int, tuple[str, ...]], list[Finding]]:
    """The answers of each row, by its id, with the most frequent spelling of each label, and what was changed."""
    counts = label_counts(rows, answers)
    spelling = {label: group[0] for group in look_alikes(counts) for label in group[1:]}
    if not spelling:
        return dict(answers), []
    changed = {key: tuple(dict.fromkeys(spelling.get(a, a) for a in value)) for key, value in answers.items()}
    affected = [row for row in rows if answers[id(row)] != changed[id(row)]]
    pairs = _listed(f"{label!r} → {name!r} ({counts[label]})" for label, name in spelling.items())
    message = f"{len(affected)} rows were given the most frequent spelling of their label: {pairs}"
    # The labels of a set are sorted (see ``labels_of``), whatever their spelling.
    changed = {key: tuple(sorted(value)) for key, value in changed.items()}
    return changed, [Finding("normalized_labels", "note", message, len(affected), places_of(affected))]


def label_findings(rows: Sequence[Row], answers: Mapping[int, tuple[str, ...]]) -> list[Finding]:
    """Labels that look alike, and labels that look like a missing value."""
    counts = label_counts(rows, answers)
    findings = []
    groups = look_alikes(counts)
    if groups:
        rare = {label for group in groups for label in group[1:]}
        texts = _listed(", ".join(f"{label!r} ({counts[label]})" for label in group) for group in groups)
        message = f"labels that look alike: {texts}; {NORMALIZE} makes each group one label"
        affected = [row for row in rows if rare.intersection(answers[id(row)])]
        count = sum(map(len, groups))
        findings.append(Finding("look_alike_labels", "warning", message, count, places_of(affected)))
    suspects = [label for label in LOOKS_MISSING if label in counts]
    if suspects:
        texts = ", ".join(f"{label!r} ({counts[label]})" for label in suspects)
        message = f"labels that look like a missing value: {texts}; if they are, add them to [data] missing_texts"
        affected = [row for row in rows if set(suspects).intersection(answers[id(row)])]
        findings.append(Finding("label_looks_missing", "warning", message, len(affected), places_of(affected)))
    return findings


def set_separator(answers: Iterable[str]) -> str:
    """The separator of answers that look like sets of labels, as in "billing, shipping"; empty if they do not.

    They do if at least a fifth of the different answers, and half of those with the separator, consist of different
    short parts each of which recurs: alone, or with other parts.
    """
    different = set(answers)
    for separator in SEPARATORS:
        parts = {answer: [part.strip() for part in answer.split(separator)] for answer in different}
        occurrences = Counter(part for found in parts.values() for part in set(found))
        several = [found for found in parts.values() if len(found) > 1]
        sets = [found for found in several if _is_set(found) and min(occurrences[part] for part in found) > 1]
        if sets and len(sets) >= max(SHARE_OF_SETS * len(different), len(several) / 2):
            return separator.strip()
    return ""


def _is_set(parts: Sequence[str]) -> bool:
    """Whether the parts of an answer are different names and not pieces of a sentence."""
    is_name = all(part and len(part.split()) <= MOST_WORDS and part[-1] not in ".!?" for part in parts)
    return is_name and len(set(parts)) == len(parts)


def label_counts(rows: Sequence[Row], answers: Mapping[int, tuple[str, ...]]) -> Counter[str]:
    """How many rows have each label."""
    return Counter(label for row in rows for label in answers[id(row)])


def _listed(texts: Iterable[str]) -> str:
    """The first texts, and how many more there are."""
    items = list(texts)
    more = f"; and {len(items) - GROUPS_SHOWN} more" if len(items) > GROUPS_SHOWN else ""
    return "; ".join(items[:GROUPS_SHOWN]) + more
