"""Chat templates: checks a tokenizer's template on probe messages and renders messages with it.

All rendering goes through this module, so training and inference get the same bytes.

T: tokens of a text.
"""

import dataclasses
import datetime
import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory.data import TOOLS, Message
from loratory.errors import UserError, did_you_mean
from loratory.models import LoadedTokenizer
from loratory.settings import PromptConfig
from loratory.text.template_runner import TemplateFailure, template_runner

# Texts that no template contains itself, used to find where a template puts the text it is given.
PROBE = {"system": "probe-of-the-system-text", "user": "probe-of-the-user-text", "assistant": "probe-of-the-answer"}
CONTEXT = 64  # tokens
# Variables that Transformers itself passes to every template; users cannot set them.
RESERVED = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "bos_token", "eos_token", "pad_token", "unk_token", "strftime_now", "raise_exception",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Renderer:
    """A tokenizer with all settings that determine how messages are rendered and tokenized."""

    tokenizer: PreTrainedTokenizerBase
    template_kwargs: Mapping[str, Any]
    date: str
    """The date, YYYY-MM-DD, shown by templates that include one."""
    ending: tuple[int, ...]
    """The tokens after an answer. They are trained; the last one stops generation."""
    stop_ids: tuple[int, ...]
    """The ids that stop generation."""
    note: str
    """How the ending was determined."""
    leading_space: str = ""
    """White space that the template puts between prompt and answer. It is trained and scored with the answer."""
    is_masked_lm: bool = False
    """Whether the model is a masked language model, which has no template and no ending."""
    label_words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The text that fills the answer slot for a label; a label without an entry stands for itself."""
    slot_length: int = 1
    """How many mask tokens an answer slot has."""
    max_length: int = 2**31
    """The longest sequence, in tokens, that the model reads; longer plain texts are split into chunks."""
    embeddings: int = 2**31
    """How many token ids, from 0, the model has an embedding for; a tokenizer may have more tokens."""

    @property
    def name(self) -> str:
        """The model's name or folder."""
        return str(getattr(self.tokenizer, "name_or_path", ""))

    @functools.cached_property
    def ending_text(self) -> str:
        """The text of the ending, decoded after an answer: on its own, some tokenizers drop its first space."""
        before = self.encode(PROBE["assistant"])[0].tolist()
        return decode(self.tokenizer, [*before, *self.ending])[len(decode(self.tokenizer, before)) :]

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """The tokenizer's added tokens, longest first; it splits them off before it tokenizes the rest."""
        return tuple(sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True))  # type: ignore[operator]

    @functools.lru_cache(maxsize=10_000)  # noqa: B019 - one Renderer lives as long as a run
    def tail_answer_ids(self, tail: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """The ids of ``tail``, and the ids of ``answer`` after it, or None if the two would merge into one token."""
        alone, both = self.encode(tail)[0], self.encode(tail + answer)[0]
        if both[: len(alone)].tolist() != alone.tolist():
            return tuple(alone.tolist()), None
        return tuple(alone.tolist()), tuple(both[len(alone) :].tolist())

    @functools.lru_cache(maxsize=100)  # noqa: B019
    def longest_answer(self, tail: str, answers: tuple[str, ...]) -> int:
        """The length in tokens of the longest of the answers after ``tail``, including the leading space."""
        texts = [self.leading_space + answer for answer in answers]
        ids = (self.tail_answer_ids(tail, text)[1] or self.encode(text)[0] for text in texts)
        return max(map(len, ids), default=0)

    @functools.lru_cache(maxsize=10_000)  # noqa: B019
    def text_lengths(self, token_ids: tuple[int, ...]) -> list[int]:
        """How many characters the first 0, 1, 2, ... tokens decode to.

        Decodes each prefix from ``CONTEXT`` to twice as many tokens before its end, because whole prefixes would take
        time quadratic in their length; what a token decodes to depends on few tokens before it.
        """
        lengths = [0]
        for start in range(0, len(token_ids), CONTEXT):
            first = max(0, start - CONTEXT)
            before = lengths[start] - len(decode(self.tokenizer, token_ids[first:start]))
            ends = range(start + 1, min(start + CONTEXT, len(token_ids)) + 1)
            lengths += [before + len(decode(self.tokenizer, token_ids[first:end])) for end in ends]
        return np.minimum.accumulate(lengths[::-1])[::-1].tolist()

    def encode(self, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
        """Ids and character spans of a rendered text; its special tokens come from the template."""
        if self.boundary is None:
            return self.encode_part(text)
        cuts = [0, *(m.start() for m in self.boundary.finditer(text) if m.start()), len(text)]
        parts = [self.encode_part(text[a:b]) for a, b in itertools.pairwise(cuts)]
        spans = [span + start for (_, span), start in zip(parts, cuts, strict=False)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate(spans)

    @functools.cached_property
    def boundary(self) -> re.Pattern[str] | None:
        """Matches the special tokens before which a text can be split without changing its ids.

        These are the tokens that do not depend on the text to their left. The tokenizer splits them off before anything
        else, so recurring parts of a text are encoded only once. None if there are none.
        """
        tokens = self.tokenizer.added_tokens_decoder.values()
        splitting = [t.content for t in tokens if t.special and not (t.lstrip or t.single_word or t.normalized)]
        return re.compile("|".join(map(re.escape, sorted(splitting, key=len, reverse=True)))) if splitting else None

    @functools.lru_cache(maxsize=10_000)  # noqa: B019
    def encode_part(self, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
        """Ids and character spans of a text, from one call of the tokenizer."""
        try:
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except BaseException as error:  # a regular expression that gives up; it is not an Exception
            if type(error).__name__ != "PanicException":
                raise
            fix = "choose another model, or remove the row"
            raise UserError("The tokenizer fails on a text", self.name, found=str(error)[:200], fix=fix) from error
        spans = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return np.array(encoding["input_ids"], dtype=np.int64), spans


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], skip_special: bool = False) -> str:
    """Decodes the ids to text."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=skip_special))


def check_embedded(token_ids: Sequence[int] | Int64[np.ndarray, "T"], renderer: Renderer, source: str | None) -> None:
    """Raises UserError if the model has no embedding for one of the tokens, which come from ``source``."""
    ids = np.asarray(token_ids)
    without = ids[ids >= renderer.embeddings]
    if not len(without):
        return
    beyond = int(without[0])
    token = renderer.tokenizer.convert_ids_to_tokens(beyond)
    raise UserError(
        "The tokenizer has a token for which the model has no embedding, and a text uses it",
        source or None,
        f"token ids below {renderer.embeddings}, the number of embeddings",
        f"{token!r}, which is token {beyond}",
        "remove it from the text, or use the tokenizer with which the model was published",
    )


def renderer_for(text: LoadedTokenizer, prompt: PromptConfig, where: str = "task file") -> Renderer:
    """Makes the renderer of a causal or a masked language model.

    Raises UserError if the template cannot be used, or if a system message is set for a masked language model.
    """
    if not text.is_masked_lm:
        renderer = make_renderer(text.tokenizer, text.stop_ids, prompt, where)
        renderer = dataclasses.replace(renderer, embeddings=text.embeddings)
        check_embedded(renderer.ending, renderer, "the end of an answer")
        return renderer
    if prompt.system is not None:
        fix = "move its text to [prompt] user"
        raise UserError("A masked language model does not take a system message", f"{where}, prompt.system", fix=fix)
    return Renderer(
        text.tokenizer,
        {},
        "",
        (),
        (),
        "a masked language model",
        is_masked_lm=True,
        label_words=prompt.words,
        max_length=text.max_length,
        embeddings=text.embeddings,
    )


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], prompt: PromptConfig, where: str = "task file"
) -> Renderer:
    """Makes a renderer: checks the template and its arguments on a probe conversation and determines the ending.

    The ending is what the template puts after an answer, up to and including the first of the model's stop tokens. If
    there is none, the ending extends to the first special token, which is added to the stop ids. If there is no special
    token either, the ending is the tokenizer's end-of-sequence token.

    Raises UserError if the date, the template or a template argument is invalid, or if no ending can be determined.
    """
    date = datetime.date.today().isoformat() if prompt.date == "auto" else prompt.date
    try:
        date = datetime.datetime.strptime(date, "%Y-%m-%d").date().isoformat()
    except ValueError as error:
        raise UserError("prompt.date is not a date", where, "YYYY-MM-DD or auto", repr(date)) from error
    source = template_source(tokenizer)
    renderer = Renderer(tokenizer, prompt.template_kwargs, date, (), tuple(stop_ids), "")
    _check_template_kwargs(renderer, prompt.template_kwargs, where)
    dated = _with_date(renderer, source)
    if dated != source:
        renderer = dataclasses.replace(renderer, template_kwargs={**prompt.template_kwargs, "chat_template": dated})
    _check_user_is_shown(renderer)
    return _with_ending(dataclasses.replace(renderer, leading_space=_leading_space(renderer)))


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The source of the chat template. Raises UserError if the tokenizer has none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise UserError("The tokenizer has no chat template", getattr(tokenizer, "name_or_path", None))
    return template


@functools.cache
def _described(name: str, source: str, day: str) -> dict[str, Any]:
    try:
        return template_runner().describe(name, source, day)
    except TemplateFailure as error:
        raise UserError("The chat template is malformed", name, found=str(error)) from error


def _with_date(renderer: Renderer, source: str) -> str:
    """Replaces the template's calls of ``strftime_now`` with the renderer's day, so that a run always shows the same
    date.

    Raises UserError if the template computes the date format, because the day cannot be inserted then.
    """
    found = _described(renderer.name, source, renderer.date)
    if found["computes_date"]:
        raise UserError(
            "The chat template computes its date format, so the date cannot be frozen", fix="choose another model"
        )
    return found["dated"]


def template_arguments(renderer: Renderer) -> frozenset[str]:
    """The names of the variables in the renderer's template that users may set."""
    source = template_source(renderer.tokenizer)
    return frozenset(_described(renderer.name, source, renderer.date)["variables"]) - RESERVED


def _check_template_kwargs(renderer: Renderer, arguments: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a misspelled argument: templates silently ignore arguments that they do not use."""
    for name in arguments:
        if name not in (known := template_arguments(renderer)):
            options = f"use one of: {', '.join(sorted(known))}" if known else "remove it; the template has no arguments"
            fix = did_you_mean(name, known) or options
            raise UserError(f"The chat template has no argument {name!r}", f"{where}, prompt.template_kwargs", fix=fix)


def _template_and_arguments(renderer: Renderer, tools: list | None) -> tuple[str, dict[str, Any]]:
    """The template that is used for these tools, and what it gets in addition to the messages."""
    arguments = {**renderer.tokenizer.special_tokens_map, **renderer.template_kwargs}
    template = renderer.tokenizer.get_chat_template(arguments.pop("chat_template", None), tools)
    return template, arguments


def apply_template(renderer: Renderer, messages: Iterable[Message], prompt: bool) -> str:
    """Renders messages with the chat template; with ``prompt``, the text ends where the answer begins.

    The text is that of ``tokenizer.apply_chat_template``. Raises UserError if the template fails or breaks a limit.
    """
    messages = tuple(messages)
    turns = [{"role": m.role, "content": m.content} for m in messages if m.role != TOOLS]
    tools = [tool for m in messages if m.role == TOOLS for tool in json.loads(m.content)] or None
    template, arguments = _template_and_arguments(renderer, tools)
    try:
        return template_runner().render(renderer.name, template, turns, tools, prompt, arguments)
    except TemplateFailure as error:  # a template is third-party code: it can divide by zero or recurse infinitely
        has_system = any(t["role"] == "system" for t in turns)
        fix = "move the system text to [prompt] user" if has_system else None
        raise UserError("The chat template rejects these messages", found=str(error), fix=fix) from error


def _check_user_is_shown(renderer: Renderer) -> None:
    text = apply_template(renderer, [Message("user", PROBE["user"])], prompt=True)
    if PROBE["user"] not in text:
        raise UserError("The chat template drops the user message", found=repr(text[:200]), fix="choose another model")


def check_system_is_shown(renderer: Renderer) -> None:
    """Raises UserError if the template rejects or drops system messages."""
    probe = [Message("system", PROBE["system"]), Message("user", PROBE["user"])]
    if PROBE["system"] not in apply_template(renderer, probe, prompt=True):
        raise UserError("The chat template drops the system message", fix="move its text to [prompt] user")


def check_tools_are_shown(renderer: Renderer) -> None:
    """Raises UserError if the template ignores tools."""
    question = Message("user", PROBE["user"])
    tool = {"type": "function", "function": {"name": "probe_tool", "description": "", "parameters": {}}}
    text = apply_template(renderer, [Message(TOOLS, json.dumps([tool])), question], prompt=True)
    if "probe_tool" not in text:
        fix = "choose another model, or remove the tools column"
        raise UserError("The chat template does not support tools", fix=fix)


def _leading_space(renderer: Renderer) -> str:
    """The white space that the template itself puts between prompt and answer."""
    question, answer = Message("user", PROBE["user"]), Message("assistant", PROBE["assistant"])
    prompt = apply_template(renderer, [question], prompt=True)
    whole = apply_template(renderer, [question, answer], prompt=False)
    between = whole.removeprefix(prompt).partition(answer.content)[0] if whole.startswith(prompt) else ""
    return between if between.isspace() else ""


def _with_ending(renderer: Renderer) -> Renderer:
    """The renderer with the ending and the stop ids that ``make_renderer`` describes."""
    turns = [Message("user", PROBE["user"]), Message("assistant", PROBE["assistant"])]
    before, answer, tail = apply_template(renderer, turns, prompt=False).rpartition(PROBE["assistant"])
    # Tokenized in context, because some tokenizers put a space before a text on its own.
    ids = renderer.tail_answer_ids(before + answer, tail)[1] if answer else ()
    ids = renderer.encode(tail)[0].tolist() if ids is None else ids
    special = {i for i, token in renderer.tokenizer.added_tokens_decoder.items() if token.special}
    for stops, note in (
        (set(renderer.stop_ids), "the template's own stop token"),
        (special, "the template's special token after an answer, added to the stop ids"),
    ):
        for end, token_id in enumerate(ids, 1):
            if token_id in stops:
                stop_ids = tuple(sorted({*renderer.stop_ids, token_id}))
                return dataclasses.replace(renderer, ending=tuple(ids[:end]), stop_ids=stop_ids, note=note)
    eos = renderer.tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise UserError(
            "Neither the chat template nor the tokenizer defines how an answer ends", fix="choose another model"
        )
    stop_ids = tuple(sorted({*renderer.stop_ids, eos}))
    note = "the tokenizer's end-of-sequence token, because the template puts no stop token after an answer"
    return dataclasses.replace(renderer, ending=(eos,), stop_ids=stop_ids, note=note)
