"""A conversation with a model or a tuned run in the terminal.

A ``Conversation`` is frozen; every line replaces it. Replies go to standard output, everything else to standard error.
"""

import dataclasses
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from loratory.data import Message
from loratory.errors import UserError, did_you_mean
from loratory.models import has_adapter
from loratory.predict.chat_terminal import CONTROL_PICTURES, Terminal
from loratory.predict.replies import (
    BASE,
    TUNED,
    ChatModel,
    Reply,
    reply_note,
    seen_tokens,
    stream_both_replies,
    stream_reply,
)
from loratory.predict.tokens import highlighted
from loratory.predict.tuned import fill_only_column, load, load_plain, only_column
from loratory.text import RenderedPrompt, Renderer, check_system_is_shown, render_prompt

COMMANDS = {
    "base": "the base model answers from now on, without the adapter",
    "adapter": "the tuned model answers from now on",
    "compare": "every answer by both, side by side; again: by one",
    "system": "TEXT: another system message (no TEXT: none), and a new conversation",
    "raw": "your text is the message as it stands, instead of filling the trained prompt; again: it fills it",
    "show": "the exact tokens of the last exchange; the answer's are on green",
    "reset": "a new conversation",
    "help": "this list",
    "quit": "the end, as Ctrl-D",
}


HELP = "\n".join(
    [
        *(f"  /{name:<8} {what}" for name, what in COMMANDS.items()),
        "A line that ends in \\ goes on in the next one; a line that begins with a space is never a command.",
        "Ctrl-C stops an answer: what was said stays in the conversation. Where nothing was, the message is forgotten.",
        "With /compare the conversation goes on with the answer of the model that /base or /adapter chose.",
    ]
)


CONTROL_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)


@dataclass(frozen=True)
class Conversation:
    """A conversation so far."""

    system: str | None
    speaker: str
    """BASE or TUNED: with whose answers it goes on."""
    fills_template: bool
    """Whether a text fills the trained prompt; else it is the message."""
    turns: tuple[Message, ...] = ()
    """User and assistant in turn, without the system message."""
    comparing: bool = False
    last: tuple[Reply, ...] = ()
    """The answers of the last exchange."""


def open_chat(
    run: Path | None, model: str, system: str | None, max_new_tokens: int, force: bool
) -> tuple[ChatModel, Conversation]:
    """Loads a run or a plain model. Raises UserError as loading does, and for a system message that is not shown."""
    if max_new_tokens < 1:
        raise UserError("No answer has so few tokens", "--max-new-tokens", "1 or more", str(max_new_tokens))
    if run is None:
        base, renderer = load_plain(model)
        chat_model = ChatModel(model, base.model, renderer, base.text.max_length, max_new_tokens)
        conversation = Conversation(system or None, BASE, fills_template=False)
    else:
        tuned = load(run, force=force)
        chat_model = ChatModel(
            f"{run} on {tuned.base.name}" if has_adapter(tuned.model) else str(run),
            tuned.model,
            tuned.renderer,
            tuned.base.text.max_length,
            max_new_tokens,
            tuned.prompt.user,
            tuned.labels,
        )
        system = tuned.trained_system() if system is None else system
        conversation = Conversation(system or None, TUNED, fills_template=only_column(tuned.prompt.user) is not None)
    if chat_model.renderer.masked:
        raise UserError("A masked language model holds no conversation", chat_model.name, fix="loratory fill")
    if conversation.system:
        check_system_is_shown(chat_model.renderer)
    return chat_model, conversation


def welcome_message(chat_model: ChatModel, conversation: Conversation) -> str:
    """What a person should know before the first line."""
    lines = [f"Talking with {chat_model.name}. /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends."]
    if conversation.system:
        lines.append(f"System message: {conversation.system}")
    if chat_model.template:
        how = (
            "fills the prompt (/raw: it does not)"
            if conversation.fills_template
            else "is the message as it stands; training filled"
        )
        lines.append(f"Your text {how}:\n{textwrap.indent(chat_model.template, '  ')}")
        lines.append("Earlier turns stay in the prompt, which the training never showed; /reset forgets them.")
    return "\n".join(lines)


def converse(chat_model: ChatModel, conversation: Conversation, terminal: Terminal) -> Conversation:
    """Answers line after line until /quit or the end of the input; a mistake is told and changes nothing.

    Raises KeyboardInterrupt where the person interrupts outside an answer, or twice within one.
    """
    while (line := read_message(terminal.read, input_prompt(chat_model, conversation))) is not None:
        try:
            command, text = parse_command(line)
            if command == "quit":
                break
            if command == "show":
                print_tokens(conversation, chat_model.renderer, terminal.console)
            elif command:
                conversation, said = apply_command(command, text, conversation, chat_model)
                terminal.notify(said)
            elif text:
                conversation = take_turn(text, conversation, chat_model, terminal)
        except UserError as error:
            terminal.notify(str(error))
    return conversation


def input_prompt(chat_model: ChatModel, conversation: Conversation) -> str:
    """What stands before a line that is typed: who will answer it."""
    if not chat_model.is_tuned:
        return "> "
    return f"{BASE} and {TUNED}> " if conversation.comparing else f"{conversation.speaker}> "


def read_message(read: Callable[[str], str], sign: str) -> str | None:
    """One line, with the next one where it ends in a backslash; None at the end of the input. Raises UserError."""
    lines: list[str] = []
    while not lines or lines[-1].endswith("\\"):
        try:
            line = read("... " if lines else sign)
        except EOFError:
            break
        except UnicodeDecodeError as error:
            raise UserError("The input is not UTF-8", found=str(error)) from error
        lines.append(line.encode("utf-8", "replace").decode("utf-8"))  # half a character has no encoding
    return "\n".join(line.removesuffix("\\") for line in lines) if lines else None


def parse_command(line: str) -> tuple[str, str]:
    """A command's name and its text, or "" and the message. Raises UserError for a command that is none."""
    found = re.match(r"/(\S*)\s*(.*)", line, re.DOTALL)
    if found is None:
        return "", line.strip()
    name, text = found[1].lower(), found[2].strip()
    if name not in COMMANDS:
        fix = did_you_mean(f"/{name}", [f"/{known}" for known in COMMANDS]) or "/help lists the commands"
        raise UserError(f"Unknown command /{name}", fix=fix)
    if text and name != "system":
        raise UserError(f"/{name} takes no text", found=text, fix="begin the line with a space to send it as a message")
    return name, text


def apply_command(
    command: str, text: str, conversation: Conversation, chat_model: ChatModel
) -> tuple[Conversation, str]:
    """The state after a command that changes it, and what to tell. Raises UserError where it cannot be done here."""
    if command in ("base", "adapter", "compare") and not chat_model.is_tuned:
        raise UserError(f"/{command} needs an adapter", found=chat_model.name, fix="loratory chat RUN, tuned with LoRA")
    if command == "raw" and only_column(chat_model.template) is None:
        raise UserError("/raw has no effect here: your text is the message as it stands")
    match command:
        case "base":
            return dataclasses.replace(conversation, speaker=BASE), "The base model answers."
        case "adapter":
            return dataclasses.replace(conversation, speaker=TUNED), "The tuned model answers."
        case "compare":
            said = "One model answers." if conversation.comparing else "Both models answer."
            return dataclasses.replace(conversation, comparing=not conversation.comparing), said
        case "raw":
            said = (
                "Your text is the message as it stands."
                if conversation.fills_template
                else f"Your text fills: {chat_model.template}"
            )
            return dataclasses.replace(conversation, fills_template=not conversation.fills_template), said
        case "system":
            if text:
                check_system_is_shown(chat_model.renderer)
            said = "A new conversation with this system message." if text else "A new conversation without one."
            return dataclasses.replace(conversation, system=text or None, turns=()), said
        case "reset":
            return dataclasses.replace(conversation, turns=()), "A new conversation."
    return conversation, HELP


def user_message(text: str, conversation: Conversation, chat_model: ChatModel) -> Message:
    """The user's message: the text as it stands, or the trained prompt with the text in it."""
    filled = fill_only_column(chat_model.template, text, chat_model.labels) if conversation.fills_template else None
    return Message("user", text if filled is None else filled)


def fit_history(
    turns: tuple[Message, ...], count: Callable[[tuple[Message, ...]], int], limit: int
) -> tuple[Message, ...]:
    """The latest turns whose prompt has at most ``limit`` tokens by ``count``; question and answer leave together."""
    while turns and count(turns) > limit:
        turns = turns[2:]
    return turns


def take_turn(text: str, conversation: Conversation, chat_model: ChatModel, terminal: Terminal) -> Conversation:
    """One message and its answer. Raises UserError where the message alone does not fit the context."""
    message = user_message(text, conversation, chat_model)
    system = (Message("system", conversation.system),) if conversation.system else ()

    def prompt(turns: tuple[Message, ...]) -> RenderedPrompt:
        return render_prompt([*system, *turns, message], chat_model.renderer)

    # An answer may take as much as it is allowed, but no more than half of the context at the history's expense.
    limit = chat_model.context - min(chat_model.max_new_tokens, chat_model.context // 2)
    turns = fit_history(conversation.turns, lambda turns: len(prompt(turns).token_ids), limit)
    with terminal.interruption() as stopped:
        if conversation.comparing:
            replies = stream_both_replies(prompt(turns), chat_model, terminal.console, stopped)
        else:
            replies = [stream_reply(prompt(turns), conversation.speaker, chat_model, terminal.console, stopped)]
    for said in filter(None, (reply_note(reply, chat_model) for reply in replies)):
        terminal.notify(said)
    if left_out := len(conversation.turns) - len(turns):
        terminal.notify(
            f"(the {left_out} oldest turns no longer fit the context of {chat_model.context} tokens: left out)"
        )
    chosen = next(reply for reply in replies if reply.speaker == conversation.speaker)
    if chosen.text or not chosen.interrupted:
        turns = (*turns, message, Message("assistant", chosen.text))
    return dataclasses.replace(conversation, turns=turns, last=tuple(replies))


def print_tokens(conversation: Conversation, renderer: Renderer, console: Console) -> None:
    """Prints the last exchange token by token. Raises UserError before the first one."""
    if not conversation.last:
        raise UserError("Nothing was said yet")
    for reply in conversation.last:
        seen = seen_tokens(reply, renderer)
        counts = f"{len(seen.token_ids)} tokens, {len(reply.token_ids)} of them the answer's, on green"
        console.print(f"{reply.speaker}: {counts}", style="bold", highlight=False, soft_wrap=True)
        console.print(highlighted(seen), end="\n\n", soft_wrap=True)
