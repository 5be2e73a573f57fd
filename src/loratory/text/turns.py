"""Turns of conversations: checks that a template shows them, and what it writes for turns with more than text."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loratory.data import CALLS, TOOLS, Example, Message, Split
from loratory.errors import UserError
from loratory.text.renderer import PROBE, Renderer
from loratory.text.template import (
    PROBE_CALL,
    PROBE_FUNCTION,
    PROBE_TOOL,
    apply_template,
    call_form,
    check_system_is_shown,
    check_tools_are_shown,
    template_source,
)

PROBE_RESULT = "probe-of-the-result"


@dataclass(frozen=True)
class RenderedTurn:
    """What the template writes for a turn after its prompt."""

    leading_space: str
    """The white space between prompt and text."""
    text: str
    ending: tuple[int, ...]
    """The tokens after the text; the last one stops generation."""


def rendered_turn(before: Sequence[Message], turn: Message, renderer: Renderer, source: str) -> RenderedTurn:
    """The text and the ending of an assistant turn as the template writes them, such as those of tool calls.

    If the template does not write the prompt in front of the turn, as when the prompt opens a block for thoughts, the
    text is what stands in the place of a plain answer. The ending is the model's first stop token, with what else
    belongs to the usual ending; without a stop token, the usual ending is added. Raises UserError if the template
    rejects the turn, or if its text cannot be found.
    """
    prompt = apply_template(renderer, before, prompt=True, source=source)
    whole = apply_template(renderer, [*before, turn], prompt=False, source=source)
    if not whole.startswith(prompt):
        answered = apply_template(renderer, [*before, Message("assistant", PROBE["assistant"])], False, source)
        prompt = answered.rpartition(PROBE["assistant"])[0]
    if not prompt or not whole.startswith(prompt):
        fix = "choose another model"
        raise UserError("The chat template does not write the turn after its prompt", source or None, fix=fix)
    rest = whole[len(prompt) :]
    text, ending = _text_and_ending(rest, renderer)
    return RenderedTurn(text[: len(text) - len(text.lstrip())], text.lstrip(), ending)


def _text_and_ending(rest: str, renderer: Renderer) -> tuple[str, tuple[int, ...]]:
    ids, spans = renderer.encode(rest)
    for token_id, (start, end) in zip(ids.tolist(), spans.tolist(), strict=True):
        if token_id in renderer.stop_ids:
            if rest[:end].endswith(renderer.ending_text):
                return rest[:end].removesuffix(renderer.ending_text), renderer.ending
            return rest[:start], (token_id,)
    return rest.rstrip(), renderer.ending


def with_rendered_answers(split: Split, renderer: Renderer) -> Split:
    """The split with the answers of turns with more than text, such as tool calls, as the template writes them."""

    def rendered(example: Example) -> Example:
        if example.turn is None:
            return example
        text = rendered_turn(example.messages, example.turn, renderer, example.source).text
        return dataclasses.replace(example, answers=(text,))

    parts = {name: tuple(map(rendered, getattr(split, name))) for name in ("train", "validation", "test")}
    return dataclasses.replace(split, **parts)


def check_turns_are_shown(examples: Iterable[Example], renderer: Renderer) -> list[str]:
    """Sentences on parts of conversations that the template leaves out.

    Raises UserError if it leaves out or rejects system messages, tools, tool calls, results of tools, or a first turn
    of the assistant.
    """
    turns, begins, beside = Counter(), False, 0
    keys: Counter[str] = Counter()
    for example in examples:
        spoken = [m for m in example.messages if m.role not in (TOOLS, "system")]
        begins = begins or (bool(spoken) and spoken[0].role == "assistant")
        for message in (*example.messages, *([example.turn] if example.turn else [])):
            turns[message.role] += 1
            if message.fields:
                keys.update(list(message.further))
                beside += CALLS in message.further and bool(message.content.strip())
    if turns["system"]:
        check_system_is_shown(renderer)
    has_tools = bool(turns[TOOLS])
    if has_tools:
        check_tools_are_shown(renderer)
    has_calls = keys.pop(CALLS, 0) > 0
    if has_calls:
        call_form(renderer, has_tools)
    if turns["tool"]:
        _check_results_are_shown(renderer, has_tools, has_calls)
    if begins:
        _check_greeting_is_shown(renderer)
    sentences = []
    if beside and not _shows_text_beside_calls(renderer, has_tools):
        sentences.append(f"The chat template leaves out the text beside tool calls, which {beside} turns have")
    source = template_source(renderer.tokenizer)
    unused = {key: count for key, count in keys.items() if key not in source}
    if unused:
        names = ", ".join(f"{key} ({count} turns)" for key, count in unused.items())
        sentences.append(f"The chat template does not use these keys of turns: {names}")
    return sentences


def _calling(content: str) -> Message:
    return Message("assistant", content, json.dumps({CALLS: [PROBE_CALL]}))


def _probe(renderer: Renderer, has_tools: bool, *turns: Message) -> str:
    tools = [Message(TOOLS, json.dumps([PROBE_TOOL]))] if has_tools else []
    return apply_template(renderer, [*tools, Message("user", PROBE["user"]), *turns], prompt=False)


def _check_results_are_shown(renderer: Renderer, has_tools: bool, has_calls: bool) -> None:
    call = _calling("") if has_calls else Message("assistant", PROBE["assistant"])
    result = Message("tool", PROBE_RESULT, json.dumps({"tool_call_id": PROBE_CALL["id"], "name": PROBE_FUNCTION}))
    if PROBE_RESULT not in _probe(renderer, has_tools, call, result):
        fix = "choose another model, or give the results in the turns of the user"
        raise UserError("The chat template does not show the turns of tools", renderer.name, fix=fix)


def _shows_text_beside_calls(renderer: Renderer, has_tools: bool) -> bool:
    return PROBE["assistant"] in _probe(renderer, has_tools, _calling(PROBE["assistant"]))


def _check_greeting_is_shown(renderer: Renderer) -> None:
    fix = "choose another model, or remove the first turn of the conversations"
    turns = [Message("assistant", PROBE["assistant"]), Message("user", PROBE["user"])]
    try:
        text = apply_template(renderer, turns, prompt=True)
    except UserError as error:
        what = "The chat template rejects conversations that begin with an assistant turn"
        raise UserError(what, renderer.name, found=error.found, fix=fix) from error
    if PROBE["assistant"] not in text:
        what = "The chat template leaves out an assistant turn at the beginning"
        raise UserError(what, renderer.name, fix=fix)
