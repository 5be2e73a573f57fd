"""Checks that data, model and settings fit together."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from loratory.bases import suggested_models
from loratory.config import Config
from loratory.data import Finding, Split, is_plain_text
from loratory.errors import UserError, did_you_mean
from loratory.machine import memory_bytes
from loratory.models import MASKED_MODELS, LoadedTokenizer, builtin_folder
from loratory.settings import BUILTIN_MASKED, BUILTINS, MASKED_TASKS
from loratory.text import (
    Renderer,
    check_system_is_shown,
    check_turns_are_shown,
    fit_to_context,
    renderer_of_task,
    template_deviation,
    tokenize,
    with_mask_count,
)

OVERLONG = "overlong_"  # begins the names of what was dropped or cut


def renderer_of_split(split: Split, config: Config, text: LoadedTokenizer, name: str) -> Renderer:
    """The renderer of a task's examples for the model ``name``. Raises UserError if it cannot do the task."""
    check_model_kind(config, text, name)
    return with_mask_count([*split.train, *split.validation], renderer_of_task(config.task, text, split.prompt))


def check_model_kind(config: Config, text: LoadedTokenizer, name: str) -> None:
    """Raises UserError if this kind of model cannot do the task."""
    where = f"task = {config.task!r}"
    if text.is_masked_lm and config.task not in MASKED_TASKS:
        expected = " or ".join(MASKED_TASKS)
        fix = 'set task = "fill" without an answer' if config.task == "pretrain" else "choose a causal model"
        raise UserError("A masked language model cannot do this task", where, expected, fix=fix)
    if not text.is_masked_lm and config.prompt.words:
        raise UserError("Label words are only for masked language models", "[prompt] words", fix="remove them")
    if not text.is_masked_lm and config.task == "fill":
        fix = f"choose one, such as answerdotai/ModernBERT-base or {BUILTIN_MASKED}"
        if is_plain_text(config.task, config.data, config.prompt):
            fix = f'set task = "pretrain", which trains causal models on plain text, or {fix}'
        raise UserError("This task needs a masked language model", where, found=name, fix=fix)


def check_words(words: Mapping[str, str], labels: Sequence[str]) -> None:
    """Raises UserError if a label word belongs to no label, or if two labels have the same word."""
    for label in words:
        if not labels:
            fix = 'set task = "classification"'
            raise UserError("Label words need labels, and this task has none", "[prompt] words", fix=fix)
        if label not in labels:
            fix = did_you_mean(label, labels) or f"use one of the labels {', '.join(labels)[:200]}"
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
    if renderer.reads_documents:
        end = (
            f"each ends with {renderer.ending_text!r}" if renderer.ending else "the tokenizer has no token to end them"
        )
        return [f"Texts are read without a chat template, {renderer.max_length} tokens at a time; {end}"]
    if config.prompt.system is not None:
        check_system_is_shown(renderer)
    left_out = check_turns_are_shown([*split.train, *split.validation, *split.test], renderer)
    sentences = [f"Answers end with {renderer.ending_text!r}: {renderer.note}", template_deviation(renderer), *left_out]
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
        f"a real model reaches. This machine's {memory_bytes() / 1024**3:.0f} GiB of memory are enough for these: "
        f"{names} (--model.name); loratory models lists smaller ones, and how long each takes"
    )


def chooses_on_validation(config: Config) -> bool:
    """Whether training needs validation examples, to choose a learning rate or to stop early."""
    return isinstance(config.train.learning_rate, tuple) or config.train.early_stopping not in ("auto", 0)


def fit_split(split: Split, renderer: Renderer, limit: int, overlong: str) -> tuple[Split, list[Finding]]:
    """Drops or cuts over-long examples as ``overlong`` says; ``limit`` is the model's context length in tokens.

    Returns the split and what was dropped or cut. Raises UserError if no examples are left.
    """
    parts, found = {}, []
    for name in ("train", "validation", "test"):
        fitted = fit_to_context(getattr(split, name), renderer, limit, overlong)
        parts[name] = fitted.examples
        for action, count in (("dropped", fitted.dropped), ("cut", fitted.cut)):
            if count:
                message = f"{count} {name} examples longer than {limit} tokens were {action}"
                found.append(Finding(f"{OVERLONG}{action}", "note", message, count))
    if not parts["train"] or not parts["test"]:
        raise UserError("No examples are left", "[data] overlong", fix="use a model with a longer context")
    return dataclasses.replace(split, **parts), found
