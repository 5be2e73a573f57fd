"""Similarity of generated texts and programs to their references."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import LCSseq, Levenshtein
from sacrebleu.metrics.chrf import CHRF

from loratory.metrics.classification import normalize_answer

# In scripts written without spaces between words, every character counts as a word.
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def words_of(text: str) -> list[str]:
    """The case-folded words of a text in any script."""
    return WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def rouge_l(answer: str, answers: Sequence[str]) -> float:
    """ROUGE-L in [0, 1] (Lin 2004): F-measure of the longest common subsequence of words.

    The maximum over the accepted ``answers``; 0 if either text has no words.
    """
    words = words_of(answer)
    # The F-measure is twice the length of the subsequence over the sum of both lengths.
    return max(2 * LCSseq.similarity(words, ref) / max(1, len(words) + len(ref)) for ref in map(words_of, answers))


def edit_similarity(answer: str, right: str) -> float:
    """1 - Levenshtein distance / length of the longer text, ignoring whitespace at line ends; in [0, 1]."""
    return float(Levenshtein.normalized_similarity(rstrip_lines(answer), rstrip_lines(right)))


def rstrip_lines(text: str) -> str:
    """Removes trailing whitespace from every line, and leading and trailing empty lines."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def text_metrics(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Metrics over all texts.

    ``chrf``: corpus-level chrF in [0, 1] (Popović 2015). ``exact_match``: after ``normalize_answer``. ``words``: mean
    number of words per answer. ``length_ratio``: total words in the answers over total words expected.
    """
    words, words_expected = (sum(len(words_of(t)) for t in texts) for texts in (answers, expected))
    same = [normalize_answer(a) == normalize_answer(e) for a, e in zip(answers, expected, strict=True)]
    return {
        "chrf": CHRF().corpus_score(list(answers), [list(expected)]).score / 100,
        "exact_match": float(np.mean(same)),
        "words": words / len(answers),
        "length_ratio": words / max(1, words_expected),
    }
