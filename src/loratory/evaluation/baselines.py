"""Baselines without fine-tuning: logistic regression on TF-IDF or hidden states, text similarity, copy rules.

E: examples.  D: hidden size.  N: targets.
"""

import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import MultiLabelBinarizer, StandardScaler
from torch import Tensor

from loratory.data import Example
from loratory.evaluation.evaluate_system import NotMeasurable
from loratory.events import ProgressCallback
from loratory.metrics import rouge_l
from loratory.models import Encoder, LoadedModel
from loratory.text import Renderer, TokenizedExample, render_prompt
from loratory.tree import Batch, Layout, micro_batches, prepared, tree_forward

FOLDS = 5
TOLERANCE = 1e-3  # gives the same answers as 1e-4 in a third of the time
CHOOSING_ROWS = 2_000  # examples on which C is chosen; more of them barely change the best C
WORD_C_VALUES = [1.0, 10.0, 100.0, 1000.0]
MULTILABEL_C = 10.0
STATE_C_VALUES = [0.0001, 0.001, 0.01, 0.1, 1.0]
ENCODER_C_VALUES = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0]

# What a word is: by default two characters or more; of texts without such words, single characters, or any text at all.
WORD_PATTERNS = (r"(?u)\b\w\w+\b", r"(?u)\b\w+\b", r"\S+")

Classifier = Callable[[Sequence[Example], ProgressCallback], list[dict[str, float]]]
"""Returns the probability of each label for each example."""


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier that was fitted to the training examples."""

    classify: Classifier
    note: str
    out_of_fold: tuple[dict[str, float], ...] = ()
    """The probability of each label for each training example, when fitted without that example; may be empty."""


@contextmanager
def fitting() -> Iterator[None]:
    """Turns what scikit-learn raises for data that it cannot fit into NotMeasurable."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        reason = "memory ran out" if isinstance(error, MemoryError) else f"scikit-learn cannot fit it ({first})"
        raise NotMeasurable(reason) from error


def word_features(texts: Sequence[str]) -> TfidfVectorizer:
    """TF-IDF of words (1-2 grams), unfitted. Raises NotMeasurable if the texts are empty."""
    pattern = next((p for p in WORD_PATTERNS if any(re.search(p, text) for text in texts)), None)
    if pattern is None:
        raise NotMeasurable("the training texts contain no words")
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=pattern)


def linear_classifier(train: Sequence[Example], seed: int) -> FittedClassifier:
    """Logistic regression on TF-IDF of words (1-2 grams) and characters (2-5 grams within words), C cross-validated.

    The text is the user message, as the language model reads it. Raises NotMeasurable, as the other baselines do, if it
    cannot be fitted to these texts.
    """
    texts = [_text(e) for e in train]
    characters = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2, max_features=50_000
    )
    features = make_union(word_features(texts), characters)
    pipeline = make_pipeline(LogisticRegression(max_iter=300, tol=TOLERANCE))
    with fitting():
        try:
            matrix = features.fit_transform(texts)
        except ValueError:  # no two texts have a part in common
            characters.set_params(min_df=1)
            matrix = features.fit_transform(texts)
        fitted = _fit(pipeline, matrix, train, WORD_C_VALUES, seed)

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[dict[str, float]]:
        rows = _probabilities(fitted.model, features.transform([_text(e) for e in examples]))
        progress(len(examples), len(examples))
        return rows

    return FittedClassifier(predict, fitted.note, fitted.out_of_fold)


def linear_multilabel_classifier(train: Sequence[Example], labels: Sequence[str]) -> FittedClassifier:
    """One-vs-rest logistic regression on TF-IDF of words (1-2 grams), for sets of labels."""
    texts = [_text(e) for e in train]
    features = word_features(texts)
    indicators = MultiLabelBinarizer(classes=list(labels)).fit([]).transform([e.answers for e in train])
    model = OneVsRestClassifier(LogisticRegression(C=MULTILABEL_C, class_weight="balanced", max_iter=300))
    with warnings.catch_warnings(), fitting():
        warnings.simplefilter("ignore", UserWarning)  # raised if all training examples have a label
        model.fit(features.fit_transform(texts), indicators)

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[dict[str, float]]:
        rows = np.asarray(model.predict_proba(features.transform([_text(e) for e in examples])))
        progress(len(examples), len(examples))
        return [dict(zip(labels, map(float, row), strict=True)) for row in rows]

    return FittedClassifier(predict, "one logistic regression per label")


def similarity_classifier(train: Sequence[Example]) -> FittedClassifier:
    """Similarity of each candidate to the text by TF-IDF of words and characters, for rows with their own candidates.

    The probabilities are a softmax over the cosine similarities of a row's candidates. The inverse document frequencies
    come from the training rows.
    """
    texts = [text for e in train for text in (_without_candidates(e), *e.candidates)]
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, max_features=100_000)
    features = make_union(word_features(texts), characters)
    with fitting():
        features.fit(texts)

    def predict(examples: Sequence[Example], progress: ProgressCallback) -> list[dict[str, float]]:
        rows = []
        texts_EV = features.transform([_without_candidates(e) for e in examples])
        for i, example in enumerate(examples):
            cosines = (features.transform(example.candidates) @ texts_EV[i].T).toarray()[:, 0] / 2
            softmax = np.exp(cosines) / np.exp(cosines).sum()
            rows.append(dict(zip(example.candidates, softmax.tolist(), strict=True)))
            progress(i + 1, len(examples))
        return rows

    return FittedClassifier(predict, "TF-IDF similarity of each candidate to the text")


def _without_candidates(example: Example) -> str:
    """The user message without the lines that list the candidates, if there are any."""
    candidate_lines = {f"- {candidate}" for candidate in example.candidates}
    return "\n".join(line for line in _text(example).split("\n") if line not in candidate_lines)


# ---- copying ---------------------------------------------------------------------------------------------------------

COPY_RULES: dict[str, Callable[[list[str]], str]] = {
    "the first sentence": lambda sentences: sentences[0],
    "the last sentence": lambda sentences: sentences[-1],
    "the longest sentence": lambda sentences: max(sentences, key=len),
    "the first two sentences": lambda sentences: " ".join(sentences[:2]),
    "the first three sentences": lambda sentences: " ".join(sentences[:3]),
    "the whole text": lambda sentences: " ".join(sentences),
}
COPY_RULE_ROWS = 200  # number of training examples on which the rule is chosen


def copy_rule(train: Sequence[Example]) -> tuple[Callable[[Example], str], str]:
    """The rule for copying from the text that is closest to the training answers by ROUGE-L, and a note that names it.

    The text is the user message without the lines, or the name before a colon, that all user messages share at the
    start, and without the lines that they share at the end.
    """
    texts = [_text(e) for e in train]
    start, end = _shared_start(texts, ("\n", ": ")), _shared_start([t[::-1] for t in texts], ("\n",))

    def sentences(example: Example) -> list[str]:
        text = _text(example)
        body = text[start : max(start, len(text) - end)].strip()
        return [s for s in re.split(r"(?<=[.?!。？！])\s+|\n+", body) if s] or [""]

    def score(name: str) -> float:
        return sum(rouge_l(COPY_RULES[name](sentences(e)), e.answers) for e in train[:COPY_RULE_ROWS])

    best = max(COPY_RULES, key=score)
    return lambda example: COPY_RULES[best](sentences(example)), f"copies {best}"


def _shared_start(texts: Sequence[str], ends: Sequence[str]) -> int:
    """The length of the prefix that all texts share, cut after the last of ``ends`` in it."""
    first, last = min(texts), max(texts)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return max(first.rfind(end, 0, common) + len(end) if end in first[:common] else 0 for end in ends)


def embedding_classifier(
    base: LoadedModel, renderer: Renderer, train: Sequence[Example], layout: Layout, token_budget: int, seed: int,
    progress: ProgressCallback,
) -> FittedClassifier:  # fmt: skip
    """Logistic regression on the frozen model's last hidden states, averaged over the tokens of the prompt."""

    def features(examples: Sequence[Example], report: ProgressCallback) -> Float32[np.ndarray, "E D"]:
        return mean_states(base, renderer, examples, layout, token_budget, report)

    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=TOLERANCE))
    states_ED = features(train, progress)
    with fitting():
        fitted = _fit(pipeline, states_ED, train, STATE_C_VALUES, seed)

    def predict(examples: Sequence[Example], report: ProgressCallback) -> list[dict[str, float]]:
        return _probabilities(fitted.model, features(examples, report))

    return FittedClassifier(predict, fitted.note, fitted.out_of_fold)


def encoder_classifier(
    encoder: Encoder, train: Sequence[Example], seed: int, progress: ProgressCallback
) -> FittedClassifier:
    """Logistic regression on the vectors that a frozen sentence encoder makes of the user messages."""
    vectors_ED = encoder.encode([_text(e) for e in train], progress)
    with fitting():
        pipeline = make_pipeline(LogisticRegression(max_iter=1000, tol=TOLERANCE))
        # By accuracy, C would often be so small that the probabilities are nearly equal; the answers are as good.
        fitted = _fit(pipeline, vectors_ED, train, ENCODER_C_VALUES, seed, scoring="neg_log_loss")

    def predict(examples: Sequence[Example], report: ProgressCallback) -> list[dict[str, float]]:
        return _probabilities(fitted.model, encoder.encode([_text(e) for e in examples], report))

    return FittedClassifier(predict, f"{encoder.name}; {fitted.note}", fitted.out_of_fold)


def _text(example: Example) -> str:
    return "\n".join(m.content for m in example.messages if m.role == "user")


@dataclass(frozen=True)
class _Fitted:
    model: Pipeline
    note: str
    """How C was chosen."""
    out_of_fold: tuple[dict[str, float], ...]


def _fit(
    pipeline: Pipeline, matrix, train: Sequence[Example], c_values: list[float], seed: int, scoring: str = "accuracy"
) -> _Fitted:
    """The pipeline fitted with the best C of ``c_values`` by one of scikit-learn's scores."""
    labels = [e.answer for e in train]
    rows = np.random.default_rng(seed).permutation(len(labels))[:CHOOSING_ROWS]
    row_labels = [labels[i] for i in rows]
    folds = min(FOLDS, min(Counter(row_labels).values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the scores reject a C that does not converge
        if len(set(labels)) < 2:
            model = make_pipeline(DummyClassifier()).fit(matrix, labels)
            return _Fitted(model, "all training examples have the same label", ())
        if folds < 2:
            c_value = c_values[len(c_values) // 2]
            pipeline.set_params(logisticregression__C=c_value)
            model = pipeline.fit(matrix, labels)
            return _Fitted(model, f"C = {c_value:g}, too few examples per label for cross-validation", ())
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
        choices = {"logisticregression__C": c_values}
        search = GridSearchCV(pipeline, choices, cv=splits, scoring=scoring, refit=False)
        search.fit(matrix[rows], row_labels)
        pipeline.set_params(**search.best_params_)
        rows = cross_val_predict(pipeline, matrix, labels, cv=splits, method="predict_proba")
        pipeline.fit(matrix, labels)
    note = f"C = {search.best_params_['logisticregression__C']:g} by cross-validation"
    return _Fitted(pipeline, note, tuple(_named(pipeline, rows)))


def _probabilities(model: Pipeline, matrix) -> list[dict[str, float]]:
    return _named(model, model.predict_proba(matrix))


def _named(model: Pipeline, rows) -> list[dict[str, float]]:
    names = [str(c) for c in model.classes_]
    return [dict(zip(names, map(float, row), strict=True)) for row in rows]


@torch.no_grad()
def mean_states(
    base: LoadedModel,
    renderer: Renderer,
    examples: Sequence[Example],
    layout: Layout,
    token_budget: int,
    progress: ProgressCallback,
) -> Float32[np.ndarray, "E D"]:
    """The model's last hidden states, averaged over the tokens of each prompt (all but the last for a causal model).

    Raises NotMeasurable if one of them is NaN or infinite.
    """
    sequences = [_as_targets(e, renderer) for e in examples]
    width = base.model.config.get_text_config().hidden_size
    totals = torch.zeros(len(examples), width, dtype=torch.float64)
    counts = torch.zeros(len(examples), 1, dtype=torch.float64)
    done = 0
    body = base.model.base_model
    with prepared(body, layout):
        for batch in micro_batches(sequences, token_budget, layout.share):
            states_ND = _target_states(body, batch.to(base.model.device), layout).cpu().double()
            totals.index_add_(0, batch.target_sequence_N, states_ND)
            counts.index_add_(0, batch.target_sequence_N, torch.ones(len(states_ND), 1, dtype=torch.float64))
            done += len(batch.target_sequence_N.unique())
            progress(done, len(examples))
    means_ED = (totals / counts).float().numpy()
    bad = np.flatnonzero(~np.isfinite(means_ED).all(axis=1))
    if len(bad):
        source = examples[bad[0]].source
        raise NotMeasurable(f"the model's hidden states are NaN or infinite, first for the example {source}")
    return means_ED


def _as_targets(example: Example, renderer: Renderer) -> TokenizedExample:
    """The prompt as a sequence in which every token is a target, so that the batch lists the row of every token."""
    prompt = render_prompt(example.messages, renderer, example.source)
    ones, shown = np.ones(len(prompt.token_ids), dtype=np.float32), prompt.token_ids if renderer.is_masked_lm else None
    return TokenizedExample(prompt.token_ids, ones, prompt.text, prompt.char_spans, example.source, shown)


def _target_states(body, batch: Batch, layout: Layout) -> Tensor:
    """The hidden state in the row of each target."""
    if layout.share:
        return tree_forward(body, batch, layout).last_hidden_state[0][batch.target_rows_N]
    starts = [*(batch.position_ids_T == 0).nonzero()[:, 0].tolist(), len(batch.token_ids_T)]
    rows = [
        body(input_ids=batch.token_ids_T[a:b][None], **layout.no_cache).last_hidden_state[0]
        for a, b in itertools.pairwise(starts)
    ]
    return torch.cat(rows)[batch.target_rows_N]
