"""Similarity of generated texts and programs to their references."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import LCSseq, Levenshtein
from sacrebleu.metrics.chrf import CHRF

from loratory.metrics.classification import normalise_answer

# Letters that are written without spaces between words count one by one.
WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def words_of(text: str) -> list[str]:
    """The words of a text in any script, case folded."""
    return WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def rouge_l(answer: str, answers: Sequence[str]) -> float:
    """ROUGE-L in [0, 1] (Lin 2004): the F-measure of the longest common subsequence of words, against the best of the
    right answers; 0 where one of the texts has no words."""
    own = words_of(answer)
    # The F-measure of an overlap is twice its length over both lengths.
    return max(2 * LCSseq.similarity(own, right) / max(1, len(own) + len(right)) for right in map(words_of, answers))


def edit_similarity(answer: str, right: str) -> float:
    """1 - Levenshtein's distance over the length of the longer text, white space at the ends of lines aside."""
    return float(Levenshtein.normalized_similarity(rstrip_lines(answer), rstrip_lines(right)))


def rstrip_lines(text: str) -> str:
    """The text without white space at the ends of its lines, and without empty lines at its ends."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def text_metrics(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Of all texts: ``chrf`` (Popović 2015, over the corpus, in [0, 1]), ``exact_match`` after ``normalise_answer``,
    ``words`` in an answer (mean), and ``length_ratio``: words answered over words expected."""
    words, words_expected = (sum(len(words_of(t)) for t in texts) for texts in (answers, expected))
    same = [normalise_answer(a) == normalise_answer(e) for a, e in zip(answers, expected, strict=True)]
    return {
        "chrf": CHRF().corpus_score(list(answers), [list(expected)]).score / 100,
        "exact_match": float(np.mean(same)),
        "words": words / len(answers),
        "length_ratio": words / max(1, words_expected),
    }
