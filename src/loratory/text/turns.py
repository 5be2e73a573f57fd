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
)

PROBE_TEXT = "probe-of-a-text"
RESULT_KEYS = {"tool_call_id": PROBE_CALL["id"], "name": PROBE_FUNCTION}


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

    return split.map(rendered)


def check_turns_are_shown(examples: Iterable[Example], renderer: Renderer) -> list[str]:
    """Sentences on parts of turns that the template leaves out.

    Raises UserError if it leaves out or rejects system messages, tools, tool calls, turns of tools, or an assistant
    turn at the beginning.
    """
    roles: Counter[str] = Counter()
    keys: Counter[tuple[str, str]] = Counter()
    begins, beside = False, 0
    for example in examples:
        spoken = next((m.role for m in example.messages if m.role not in (TOOLS, "system")), "")
        begins = begins or spoken == "assistant"
        for message in (*example.messages, *([example.turn] if example.turn else [])):
            roles[message.role] += 1
            further = message.further
            keys.update((message.role, key) for key in further)
            beside += CALLS in further and bool(message.content.strip())
    if roles["system"]:
        check_system_is_shown(renderer)
    if roles[TOOLS]:
        check_tools_are_shown(renderer)
    probe = _Probe(renderer, bool(roles[TOOLS]), ("assistant", CALLS) in keys)
    if probe.has_calls:
        call_form(renderer, probe.has_tools)
    if roles["tool"]:
        _check_results_are_shown(probe)
    if begins:
        _check_greeting_is_shown(renderer)
    sentences = []
    if beside and PROBE_TEXT not in probe.text(_calling(PROBE_TEXT)):
        sentences.append(f"The chat template leaves out the text beside tool calls ({beside} in the data)")
    for (role, key), count in keys.items():
        if key not in (CALLS, "tool_call_id") and not _shows_key(probe, role, key):
            sentences.append(f"The chat template does not show {key!r} of {role} turns ({count} in the data)")
    return sentences


@dataclass(frozen=True)
class _Probe:
    """Renders probe turns in the circumstances of the data."""

    renderer: Renderer
    has_tools: bool
    has_calls: bool

    def text(self, turn: Message) -> str:
        """The rendering of a conversation that ends with the turn. Raises UserError if the template rejects it."""
        tools = [Message(TOOLS, json.dumps([PROBE_TOOL]))] if self.has_tools else []
        user, answer = Message("user", PROBE["user"]), Message("assistant", PROBE["assistant"])
        before = [user, _calling("") if self.has_calls else answer] if turn.role == "tool" else [user]
        turns = [*before, turn]
        if turn.role in ("system", "user"):
            turns = [turn, user, answer] if turn.role == "system" else [turn, answer]
        return apply_template(self.renderer, [*tools, *turns], prompt=False)


def _check_results_are_shown(probe: _Probe) -> None:
    fix = "choose another model, or give the results in the turns of the user"
    try:
        text = probe.text(Message("tool", PROBE_TEXT, json.dumps(RESULT_KEYS)))
    except UserError as error:
        what = "The chat template rejects the turns of tools"
        raise UserError(what, probe.renderer.name, found=error.found, fix=fix) from error
    if PROBE_TEXT not in text:
        raise UserError("The chat template leaves out the turns of tools", probe.renderer.name, fix=fix)


def _shows_key(probe: _Probe, role: str, key: str) -> bool:
    fields = {**(RESULT_KEYS if role == "tool" else {}), key: PROBE_TEXT}
    try:
        return PROBE_TEXT in probe.text(Message(role, PROBE["assistant"], json.dumps(fields)))
    except UserError:
        return True  # a template that rejects the value does use the key


def _calling(content: str) -> Message:
    return Message("assistant", content, json.dumps({CALLS: [PROBE_CALL]}))


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
