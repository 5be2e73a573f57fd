"""Checks that data, model and settings fit together."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loratory.config import Config
from loratory.data import TOOLS, Example, Split
from loratory.errors import UserError, did_you_mean
from loratory.machine import memory_bytes
from loratory.models import MASKED_MODELS, LoadedTokenizer, builtin_folder, suggested_models
from loratory.settings import BUILTIN_MASKED, BUILTINS, MASKED_TASKS
from loratory.text import (
    Renderer,
    check_system_is_shown,
    check_tools_are_shown,
    fit_to_context,
    template_deviation,
    tokenize,
)


def check_model_kind(config: Config, text: LoadedTokenizer, name: str) -> None:
    """Raises UserError if this kind of model cannot do the task."""
    where = f"task = {config.task!r}"
    if text.is_masked_lm and config.task not in MASKED_TASKS:
        expected = " or ".join(MASKED_TASKS)
        raise UserError("A masked language model cannot do this task", where, expected, fix="choose a causal model")
    if not text.is_masked_lm and config.prompt.words:
        raise UserError("Label words are only for masked language models", "[prompt] words", fix="remove them")
    if not text.is_masked_lm and config.task == "fill":
        fix = f"choose one, such as answerdotai/ModernBERT-base or {BUILTIN_MASKED}"
        raise UserError("This task needs a masked language model", where, found=name, fix=fix)


def check_words(words: Mapping[str, str], labels: Sequence[str]) -> None:
    """Raises UserError if a label word belongs to no label, or if two labels have the same word."""
    for label in words:
        if not labels:
            fix = 'set task = "classification"'
            raise UserError("Label words need labels, and this task has none", "[prompt] words", fix=fix)
        if label not in labels:
            fix = did_you_mean(label, labels) or f"labels: {', '.join(labels)[:200]}"
            raise UserError(
                "A label word is set for something that is not a label", "[prompt] words", found=repr(label), fix=fix
            )
    used = Counter(words.get(label, label) for label in labels)
    for word, count in used.items():
        if count > 1:
            raise UserError("Two labels have the same word and cannot be told apart", "[prompt] words", found=word)


def template_notes(renderer: Renderer, config: Config, split: Split) -> list[str]:
    """Sentences on how prompts and answers are rendered. Raises UserError if the template drops a part of them."""
    if renderer.is_masked_lm:
        return ["This is a masked language model: it fills in masked tokens"]
    if config.prompt.system is not None:
        check_system_is_shown(renderer)
    if any(m.role == TOOLS for e in split.train for m in e.messages):
        check_tools_are_shown(renderer)
    sentences = [f"Answers end with {renderer.ending_text!r}: {renderer.note}", template_deviation(renderer)]
    return [sentence for sentence in sentences if sentence]


def check_tokens(split: Split, renderer: Renderer) -> None:
    """Raises UserError if an example has a token for which the model has no embedding."""
    if len(renderer.tokenizer) <= renderer.embeddings:
        return
    for example in (*split.train, *split.validation, *split.test):
        tokenize(dataclasses.replace(example, answers=(*example.answers, *example.candidates)), renderer)


def is_demonstration(config: Config) -> bool:
    """Whether the demonstration model is used on data other than the package's demonstration data."""
    package = builtin_folder().parent
    return config.model.name in BUILTINS and not all(Path(name).is_relative_to(package) for name in config.data.train)


def demonstration_text(masked: bool) -> str:
    """A warning that the demonstration model is weak, with models that fit into this machine's memory."""
    names = ", ".join(MASKED_MODELS if masked else suggested_models(memory_bytes()))
    return (
        "This is the small demonstration model that comes with Loratory: it shows the workflow, not the quality that "
        f"a real model reaches. With this machine's {memory_bytes() / 1024**3:.0f} GiB of memory, try --model.name "
        f"with one of: {names}"
    )


def chooses_on_validation(config: Config) -> bool:
    """Whether training needs validation examples, to choose a learning rate or to stop early."""
    return isinstance(config.train.learning_rate, tuple) or config.train.early_stopping > 0


def fit_split(
    split: Split, renderer: Renderer, limit: int, overlong: str, folds: bool = False
) -> tuple[Split, list[dict[str, Any]]]:
    """Drops or cuts over-long examples as ``overlong`` says, and checks the data.

    ``limit`` is the model's context length in tokens. With ``folds``, the test examples are all examples, and each fold
    trains on some of them. Returns the split and the findings of the checks. Raises UserError if no examples are left.
    """
    parts, checks = {}, []
    for name in ("train", "validation", "test"):
        fitted = fit_to_context(getattr(split, name), renderer, limit, overlong)
        parts[name] = fitted.examples
        for action, count in (("dropped", fitted.dropped), ("cut", fitted.cut)):
            if count:
                message = f"{count} {name} examples longer than {limit} tokens were {action}"
                checks.append({"name": f"overlong_{action}", "count": count, "message": message})
    if not parts["train"] or not parts["test"]:
        raise UserError("No examples are left", "[data] overlong", fix="use a model with a longer context")
    split = dataclasses.replace(split, **parts)
    repeated = _repeated(split, folds)
    if repeated:
        message = f"{repeated} test examples have the same text as a training example"
        checks.append({"name": "test_in_train", "count": repeated, "message": message})
    with_special = sum(_has_special_text(e, renderer) for name in parts for e in parts[name])
    if with_special:
        message = f"{with_special} examples contain the text of a special token, which the model reads as that token"
        checks.append({"name": "special_tokens_in_data", "count": with_special, "message": message})
    text = " ".join(m.content for m in parts["train"][0].messages)
    unnamed = sum(label not in text for label in split.labels)
    if unnamed and not renderer.is_masked_lm:
        message = f"The prompt does not name {unnamed} of {len(split.labels)} labels, so prompting cannot know them"
        checks.append({"name": "labels_not_in_prompt", "count": unnamed, "message": f"{message}: use {{labels}}"})
    return split, checks


def _has_special_text(example: Example, renderer: Renderer) -> bool:
    texts = [m.content for m in example.messages if m.role not in ("system", TOOLS)] + list(example.answers)
    return any(special in text for text in texts for special in renderer.special_texts)


def _repeated(split: Split, folds: bool) -> int:
    """How many test examples have the same text as a training example, or as any other example with ``folds``."""
    counts = Counter(example.messages for example in (split.test if folds else split.train))
    return sum(counts[example.messages] > folds for example in split.test)
