"""A tokenizer with its chat template, checked on probes. The only caller of the template: training and use get the same
bytes.

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

import jinja2
import jinja2.meta
import jinja2.nodes
import numpy as np
from jaxtyping import Int64
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory.config import PromptConfig
from loratory.data import TOOLS, Message
from loratory.errors import UserError, did_you_mean
from loratory.models import LoadedTokenizer

# Text that no template produces by itself, to find where a template puts what it is given.
PROBE = {"system": "probe-of-the-system-text", "user": "probe-of-the-user-text", "assistant": "probe-of-the-answer"}
# What Transformers itself hands to every template; not a person's to set.
RESERVED = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "bos_token", "eos_token", "pad_token", "unk_token", "strftime_now", "raise_exception",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Renderer:
    """A tokenizer with everything that decides the bytes."""

    tokenizer: PreTrainedTokenizerBase
    template_kwargs: Mapping[str, Any]
    date: str
    """The day that a template with a date shows, YYYY-MM-DD."""
    ending: tuple[int, ...]
    """The tokens after an answer, trained; the last one stops generation."""
    stop_ids: tuple[int, ...]
    """Generation stops on any of these."""
    note: str
    """How the ending was found."""
    lead: str = ""
    """White space that the template puts between prompt and answer; trained and scored with the answer."""
    masked: bool = False
    """Whether it is for a masked language model, without template and ending."""
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What fills the blank for a label, where that is not the label itself."""
    masks: int = 1
    """How many mask tokens a blank has."""
    longest: int = 2**31
    """Tokens that the model reads at once; longer plain texts are cut into pieces."""

    @functools.cached_property
    def ending_text(self) -> str:
        """The text of the ending after an answer; alone, some tokenizers decode it without its first space."""
        before = self.encode(PROBE["assistant"])[0].tolist()
        return decode(self.tokenizer, [*before, *self.ending])[len(decode(self.tokenizer, before)) :]

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Texts that the tokenizer cuts out before anything else, longest first."""
        return tuple(sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True))  # type: ignore[operator]

    @functools.lru_cache(maxsize=10_000)  # noqa: B019 - one Renderer lives as long as a run
    def tail_answer_ids(self, tail: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Ids of ``tail``, and those of ``answer`` after it or None where the two merge into one token."""
        alone, both = self.encode(tail)[0], self.encode(tail + answer)[0]
        if both[: len(alone)].tolist() != alone.tolist():
            return tuple(alone.tolist()), None
        return tuple(alone.tolist()), tuple(both[len(alone) :].tolist())

    @functools.lru_cache(maxsize=100)  # noqa: B019
    def longest_answer(self, tail: str, answers: tuple[str, ...]) -> int:
        """Tokens of the longest of the answers after ``tail``."""
        texts = [self.lead + answer for answer in answers]
        ids = (self.tail_answer_ids(tail, text)[1] or self.encode(text)[0] for text in texts)
        return max(map(len, ids), default=0)

    @functools.lru_cache(maxsize=10_000)  # noqa: B019
    def text_lengths(self, token_ids: tuple[int, ...]) -> list[int]:
        """Characters that the first 0, 1, 2, ... of the tokens stand for."""
        lengths = [len(decode(self.tokenizer, token_ids[:n])) for n in range(len(token_ids) + 1)]
        return np.minimum.accumulate(lengths[::-1])[::-1].tolist()

    def encode(self, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
        """Ids and character spans of a rendered text; the template has put the special tokens in already."""
        if self.boundary is None:
            return self.encode_part(text)
        cuts = [0, *(m.start() for m in self.boundary.finditer(text) if m.start()), len(text)]
        parts = [self.encode_part(text[a:b]) for a, b in itertools.pairwise(cuts)]
        spans = [span + start for (_, span), start in zip(parts, cuts, strict=False)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate(spans)

    @functools.cached_property
    def boundary(self) -> re.Pattern[str] | None:
        """Special tokens before which a text may be cut without changing its ids: those that take no notice of what
        stands to their left. A tokenizer cuts them out before anything else, so parts that recur are encoded once.
        """
        tokens = self.tokenizer.added_tokens_decoder.values()
        clean = [t.content for t in tokens if t.special and not (t.lstrip or t.single_word or t.normalized)]
        return re.compile("|".join(map(re.escape, sorted(clean, key=len, reverse=True)))) if clean else None

    @functools.lru_cache(maxsize=10_000)  # noqa: B019
    def encode_part(self, text: str) -> tuple[Int64[np.ndarray, "T"], Int64[np.ndarray, "T 2"]]:
        """Ids and character spans of a text, in one call of the tokenizer."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return np.array(found["input_ids"], dtype=np.int64), spans


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], skip_special: bool = False) -> str:
    """The text of the ids."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=skip_special))


def renderer_for(text: LoadedTokenizer, prompt: PromptConfig, where: str = "task file") -> Renderer:
    """The renderer of a causal or of a masked language model. Raises UserError."""
    if not text.masked:
        return make_renderer(text.tokenizer, text.stop_ids, prompt, where)
    if prompt.system is not None:
        fix = "put its text into [prompt] user"
        raise UserError("A masked language model takes no system message", f"{where}, prompt.system", fix=fix)
    return Renderer(
        text.tokenizer,
        {},
        "",
        (),
        (),
        "a masked language model",
        masked=True,
        words=prompt.words,
        longest=text.max_length,
    )


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], prompt: PromptConfig, where: str = "task file"
) -> Renderer:
    """Checks template and arguments on a probe conversation and finds the ending. Raises UserError.

    The ending is what the template puts after an answer, up to and including the first of the model's stop ids; else
    up to and including the first special token, which joins the stop ids; else the tokenizer's end-of-sequence token.
    """
    date = datetime.date.today().isoformat() if prompt.date == "auto" else prompt.date
    try:
        day = datetime.datetime.strptime(date, "%Y-%m-%d")
    except ValueError as error:
        raise UserError("prompt.date is no date", where, "YYYY-MM-DD or auto", repr(date)) from error
    source = template_source(tokenizer)
    _check_template_kwargs(source, prompt.template_kwargs, where)
    shown = _with_date(source, day)
    frozen: dict[str, Any] = {"chat_template": shown} if shown != source else {}
    renderer = Renderer(tokenizer, {**prompt.template_kwargs, **frozen}, date, (), tuple(stop_ids), "")
    _check_user_is_shown(renderer)
    return _with_ending(dataclasses.replace(renderer, lead=_lead(renderer)))


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the chat template. Raises UserError where the tokenizer has none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise UserError("The tokenizer has no chat template", getattr(tokenizer, "name_or_path", None))
    return template


def _parse(source: str) -> jinja2.nodes.Template:
    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source)
    try:
        return jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        raise UserError("The chat template is malformed", found=str(error)[:300]) from error


def _with_date(source: str, day: datetime.datetime) -> str:
    """The template with the day in place of what it asks strftime_now for: a run must show the same day whenever used.

    Raises UserError where the format is computed, so that the day cannot be put in.
    """
    call = r"""strftime_now\(\s*(["'])((?:(?!\1).)*)\1\s*\)"""
    shown = re.sub(call, lambda m: repr(day.strftime(m[2])), source)
    if "strftime_now" in shown and any(
        isinstance(call.node, jinja2.nodes.Name) and call.node.name == "strftime_now"
        for call in _parse(shown).find_all(jinja2.nodes.Call)
    ):
        raise UserError("The chat template shows the date in a format that cannot be fixed", fix="choose another model")
    return shown


@functools.cache
def template_arguments(source: str) -> frozenset[str]:
    """The names that a template looks up and that a person may set."""
    return frozenset(jinja2.meta.find_undeclared_variables(_parse(source)) - RESERVED)


def _check_template_kwargs(source: str, arguments: Mapping[str, Any], where: str) -> None:
    """Templates ignore arguments that they do not know, silently; so a misspelt one is found here."""
    for name in arguments:
        if name not in (known := template_arguments(source)):
            fix = did_you_mean(name, known) or f"it knows: {', '.join(sorted(known)) or 'none'}"
            raise UserError(
                f"The chat template knows no argument {name!r}", f"{where}, prompt.template_kwargs", fix=fix
            )


def apply_template(renderer: Renderer, messages: Iterable[Message], prompt: bool) -> str:
    """The chat template's text for the messages; ``prompt``: ending where the answer begins. Raises UserError."""
    messages = tuple(messages)
    turns = [{"role": m.role, "content": m.content} for m in messages if m.role != TOOLS]
    tools = [tool for m in messages if m.role == TOOLS for tool in json.loads(m.content)] or None
    try:
        text = renderer.tokenizer.apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=prompt, **renderer.template_kwargs
        )
    except Exception as error:  # a template is someone else's program: it can divide by zero or recurse without end
        has_system = any(t["role"] == "system" for t in turns)
        fix = "put the system text into [prompt] user" if has_system else None
        raise UserError("The chat template refuses these messages", found=str(error)[:300], fix=fix) from error
    assert isinstance(text, str)
    return text


def _check_user_is_shown(renderer: Renderer) -> None:
    text = apply_template(renderer, [Message("user", PROBE["user"])], prompt=True)
    if PROBE["user"] not in text:
        raise UserError(
            "The chat template does not show the user's text", found=repr(text[:200]), fix="choose another model"
        )


def check_system_is_shown(renderer: Renderer) -> None:
    """Raises UserError where the template refuses system messages or drops them."""
    probe = [Message("system", PROBE["system"]), Message("user", PROBE["user"])]
    if PROBE["system"] not in apply_template(renderer, probe, prompt=True):
        raise UserError("The chat template drops the system message", fix="put its text into [prompt] user")


def check_tools_are_shown(renderer: Renderer) -> None:
    """Raises UserError where the template takes no notice of tools."""
    question = Message("user", PROBE["user"])
    tool = {"type": "function", "function": {"name": "probe_tool", "description": "", "parameters": {}}}
    text = apply_template(renderer, [Message(TOOLS, json.dumps([tool])), question], prompt=True)
    if "probe_tool" not in text:
        raise UserError("The chat template does not show tools", fix="choose another model, or remove the column tools")


def _lead(renderer: Renderer) -> str:
    """The white space between prompt and answer in the template's own conversations."""
    question, answer = Message("user", PROBE["user"]), Message("assistant", PROBE["assistant"])
    prompt = apply_template(renderer, [question], prompt=True)
    whole = apply_template(renderer, [question, answer], prompt=False)
    between = whole.removeprefix(prompt).partition(answer.content)[0] if whole.startswith(prompt) else ""
    return between if between.isspace() else ""


def _with_ending(renderer: Renderer) -> Renderer:
    turns = [Message("user", PROBE["user"]), Message("assistant", PROBE["assistant"])]
    before, found, tail = apply_template(renderer, turns, prompt=False).rpartition(PROBE["assistant"])
    # In context, because alone some tokenizers put a space before it.
    ids = renderer.tail_answer_ids(before + found, tail)[1] if found else ()
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
            "Neither the chat template nor the tokenizer says how an answer ends", fix="choose another model"
        )
    stop_ids = tuple(sorted({*renderer.stop_ids, eos}))
    note = "the tokenizer's end-of-sequence token, because the template puts no stop after an answer"
    return dataclasses.replace(renderer, ending=(eos,), stop_ids=stop_ids, note=note)
