"""Chat templates: checks a tokenizer's template on probe messages and renders messages with it.

All rendering goes through this module, so training and inference get the same bytes.
"""

import copy
import dataclasses
import datetime
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from loratory.data import CALLS, TOOLS, Message
from loratory.errors import UserError, did_you_mean
from loratory.models import LoadedTokenizer
from loratory.settings import PromptConfig
from loratory.text.renderer import PROBE, Renderer, check_embedded
from loratory.text.template_runner import TemplateFailure, template_runner

# Contains no text of a template either. Some templates demand ids of nine characters.
PROBE_FUNCTION, PROBE_VALUE = "probe_call", "probe-value"
PROBE_CALL = {
    "id": "probecall",
    "type": "function",
    "function": {"name": PROBE_FUNCTION, "arguments": {"probe": PROBE_VALUE}},
}
PROBE_TOOL = {"type": "function", "function": {"name": "probe_tool", "description": "", "parameters": {}}}
# Variables that Transformers itself passes to every template; users cannot set them.
RESERVED = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "bos_token", "eos_token", "pad_token", "unk_token", "strftime_now", "raise_exception",
}  # fmt: skip

CHOOSE_OTHER = "choose a model with tools, such as Qwen/Qwen2.5-0.5B-Instruct (--model.name)"


@dataclass(frozen=True)
class CallForm:
    """How a chat template takes a turn with tool calls and no text. Templates differ, and fail or write "None" for
    another form."""

    content: Mapping[str, str | None]
    """The key "content": null, absent or empty."""
    arguments_as_text: bool
    """Whether the arguments are JSON text; otherwise they are an object."""


CONTENTS: tuple[dict[str, str | None], ...] = ({"content": None}, {}, {"content": ""})
CALL_FORMS = [CallForm(content, as_text) for as_text in (False, True) for content in CONTENTS]


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


def apply_template(renderer: Renderer, messages: Iterable[Message], prompt: bool, source: str = "") -> str:
    """Renders messages with the chat template; with ``prompt``, the text ends where the answer begins.

    The text is that of ``tokenizer.apply_chat_template``. Raises UserError if the template fails, breaks a limit or
    does not support tool calls that occur.
    """
    messages = tuple(messages)
    tools = [tool for m in messages if m.role == TOOLS for tool in json.loads(m.content)] or None
    turns = [_turn(m, renderer, bool(tools)) for m in messages if m.role != TOOLS]
    try:
        return _render(renderer, turns, tools, prompt)
    except TemplateFailure as error:  # a template is third-party code: it can divide by zero or recurse infinitely
        has_system = any(t["role"] == "system" for t in turns)
        fix = "move the system text to [prompt] user" if has_system else None
        if len(turns) > 2:
            fix = "remove the row, or choose a model whose chat template takes such a conversation"
        raise UserError(
            "The chat template rejects these messages", source or None, found=str(error), fix=fix
        ) from error


def _render(renderer: Renderer, turns: list[dict[str, Any]], tools: list | None, prompt: bool) -> str:
    template, arguments = _template_and_arguments(renderer, tools)
    return template_runner().render(renderer.name, template, turns, tools, prompt, arguments)


def _turn(message: Message, renderer: Renderer, has_tools: bool) -> dict[str, Any]:
    """The message as templates get it."""
    turn = {"role": message.role, "content": message.content, **message.further}
    return _in_form(turn, call_form(renderer, has_tools)) if CALLS in turn else turn


@functools.lru_cache(maxsize=100)  # a renderer is compared by identity
def call_form(renderer: Renderer, has_tools: bool) -> CallForm:
    """The form in which the template shows tool calls. Raises UserError if it shows them in none."""
    turn, shown = {"role": "assistant", "content": "", CALLS: [PROBE_CALL]}, []
    for form in CALL_FORMS:
        turns = [{"role": "user", "content": PROBE["user"]}, _in_form(turn, form)]
        try:
            text = _render(renderer, turns, [PROBE_TOOL] if has_tools else None, prompt=False)
        except TemplateFailure:
            continue
        if PROBE_FUNCTION in text and PROBE_VALUE in text:
            shown.append((text.count("None") + text.count("{'"), form))  # values in Python's spelling
    if not shown:
        fix = f"{CHOOSE_OTHER}, or write the calls into the turns' content"
        raise UserError("The chat template does not support tool calls", renderer.name, fix=fix)
    return min(shown, key=lambda pair: pair[0])[1]


def _in_form(turn: dict[str, Any], form: CallForm) -> dict[str, Any]:
    """A turn with tool calls, in the form that the template takes."""
    calls = copy.deepcopy(turn[CALLS])
    for call in calls if form.arguments_as_text else ():
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    content = {"content": turn["content"]} if turn.get("content", "").strip() else form.content
    return {
        "role": turn["role"],
        **content,
        **{k: v for k, v in turn.items() if k not in ("role", "content")},
        CALLS: calls,
    }


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
    text = apply_template(renderer, [Message(TOOLS, json.dumps([PROBE_TOOL])), question], prompt=True)
    if PROBE_TOOL["function"]["name"] not in text:
        fix = f"{CHOOSE_OTHER}, or remove the tools and their calls from the data"
        raise UserError("The chat template does not support tools", renderer.name, fix=fix)


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
