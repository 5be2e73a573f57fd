"""Chat with a base model or a tuned run in the terminal.

A ``Conversation`` is immutable; each input line produces a new one. Replies go to standard output, everything else to
standard error.
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
from loratory.events import EventCallback, ignore_event
from loratory.models import has_adapter
from loratory.predict.chat_terminal import Terminal
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
from loratory.predict.tuned import check_max_new_tokens, fill_only_column, load, load_plain, only_column
from loratory.text import RenderedPrompt, Renderer, check_system_is_shown, render_prompt

COMMANDS = {
    "base": "switch to the base model, without the adapter",
    "adapter": "switch to the tuned model",
    "compare": "turn side-by-side answers of both models on or off",
    "system": "TEXT: start a new conversation with this system message (without TEXT: with none)",
    "raw": "switch between sending your text unchanged and filling the training prompt with it",
    "show": "show the exact tokens of the last exchange; generated tokens are on green",
    "reset": "start a new conversation",
    "help": "show this list",
    "quit": "exit, like Ctrl-D",
}


HELP = "\n".join(
    [
        *(f"  /{name:<8} {description}" for name, description in COMMANDS.items()),
        "End a line with \\ to continue it on the next line. A line that starts with a space is never a command.",
        "Ctrl-C stops an answer. Its text so far stays in the conversation; if there is none, your message is dropped.",
        "With /compare, the conversation continues with the answer of the model chosen with /base or /adapter.",
    ]
)


@dataclass(frozen=True)
class Conversation:
    """The state of a conversation."""

    system: str | None
    speaker: str
    """BASE or TUNED: the model whose answers become part of the conversation."""
    fills_template: bool
    """Whether the user's text fills the training prompt; otherwise it is the whole message."""
    turns: tuple[Message, ...] = ()
    """Alternating user and assistant messages, without the system message."""
    comparing: bool = False
    last: tuple[Reply, ...] = ()
    """The replies of the last exchange."""


def open_chat(
    run: Path | None,
    model: str,
    system: str | None,
    max_new_tokens: int,
    force: bool,
    on_event: EventCallback = ignore_event,
) -> tuple[ChatModel, Conversation]:
    """Loads a run or a base model.

    Raises UserError if loading fails or if the chat template does not show the system message.
    """
    check_max_new_tokens(max_new_tokens)
    if run is None:
        base, renderer = load_plain(model, on_event)
        chat_model = ChatModel(model, base.model, renderer, base.text.max_length, max_new_tokens)
        conversation = Conversation(system or None, BASE, fills_template=False)
    else:
        tuned = load(run, force=force, on_event=on_event)
        chat_model = ChatModel(
            f"{run} on {tuned.base.name}" if has_adapter(tuned.model) else str(run),
            tuned.model,
            tuned.renderer,
            tuned.base.text.max_length,
            max_new_tokens,
            tuned.prompt.user,
            tuned.labels,
        )
        system = tuned.training_system_message() if system is None else system
        conversation = Conversation(system or None, TUNED, fills_template=only_column(tuned.prompt.user) is not None)
    if chat_model.renderer.is_masked_lm:
        raise UserError(
            "A masked language model cannot hold a conversation", chat_model.name, fix="use 'loratory fill'"
        )
    if chat_model.renderer.reads_documents:
        fix = f"use 'loratory ask TEXT --run {run}', which continues the text"
        raise UserError("This model was tuned on plain texts and holds no conversation", chat_model.name, fix=fix)
    if conversation.system:
        check_system_is_shown(chat_model.renderer)
    return chat_model, conversation


def welcome_message(chat_model: ChatModel, conversation: Conversation) -> str:
    """The text shown before the first input line."""
    lines = [f"Chat with {chat_model.name}. /help lists the commands, Ctrl-C stops an answer, Ctrl-D exits."]
    if conversation.system:
        lines.append(f"System message: {conversation.system}")
    if chat_model.template:
        usage = (
            "Your text fills the training prompt (/raw sends it unchanged)"
            if conversation.fills_template
            else "Your text is sent unchanged. The training prompt was"
        )
        lines.append(f"{usage}:\n{textwrap.indent(chat_model.template, '  ')}")
        lines.append("Earlier turns stay in the prompt, unlike in training; /reset clears them.")
    return "\n".join(lines)


def converse(chat_model: ChatModel, conversation: Conversation, terminal: Terminal) -> Conversation:
    """Answers each line until /quit or the end of the input; errors are reported and leave the conversation unchanged.

    Raises KeyboardInterrupt if the user interrupts outside an answer, or twice during one.
    """
    while (line := read_message(terminal.read, input_prompt(chat_model, conversation))) is not None:
        try:
            command, text = parse_command(line)
            if command == "quit":
                break
            if command == "show":
                print_tokens(conversation, chat_model.renderer, terminal.console)
            elif command:
                conversation, message = apply_command(command, text, conversation, chat_model)
                terminal.notify(message)
            elif text:
                conversation = take_turn(text, conversation, chat_model, terminal)
        except UserError as error:
            terminal.notify(str(error))
    return conversation


def input_prompt(chat_model: ChatModel, conversation: Conversation) -> str:
    """The input prompt, which names the model that will answer."""
    if not chat_model.is_tuned:
        return "> "
    return f"{BASE} and {TUNED}> " if conversation.comparing else f"{conversation.speaker}> "


def read_message(read: Callable[[str], str], prompt: str) -> str | None:
    """One message: a line, continued on the next one if it ends in a backslash; None at the end of the input.

    Raises UserError if the input is not UTF-8.
    """
    lines: list[str] = []
    while not lines or lines[-1].endswith("\\"):
        try:
            line = read("... " if lines else prompt)
        except EOFError:
            break
        except UnicodeDecodeError as error:
            raise UserError("The input is not valid UTF-8", found=str(error)) from error
        lines.append(line.encode("utf-8", "replace").decode("utf-8"))  # lone surrogates cannot be encoded
    return "\n".join(line.removesuffix("\\") for line in lines) if lines else None


def parse_command(line: str) -> tuple[str, str]:
    """The name and the text of a command, or "" and the message. Raises UserError for an unknown command."""
    match = re.match(r"/(\S*)\s*(.*)", line, re.DOTALL)
    if match is None:
        return "", line.strip()
    name, text = match[1].lower(), match[2].strip()
    if name not in COMMANDS:
        fix = did_you_mean(f"/{name}", [f"/{known}" for known in COMMANDS]) or "/help lists the commands"
        raise UserError(f"Unknown command /{name}", fix=fix)
    if text and name != "system":
        raise UserError(f"/{name} takes no text", found=text, fix="start the line with a space to send it as a message")
    return name, text


def apply_command(
    command: str, text: str, conversation: Conversation, chat_model: ChatModel
) -> tuple[Conversation, str]:
    """The conversation after a command, and a message to show. Raises UserError if the command does not apply here."""
    if command in ("base", "adapter", "compare") and not chat_model.is_tuned:
        raise UserError(
            f"/{command} needs an adapter",
            found=chat_model.name,
            fix="start 'loratory chat' with a run tuned with LoRA",
        )
    if command == "raw" and only_column(chat_model.template) is None:
        raise UserError("/raw has no effect here: your text is always sent unchanged")
    match command:
        case "base":
            return dataclasses.replace(conversation, speaker=BASE), "The base model answers."
        case "adapter":
            return dataclasses.replace(conversation, speaker=TUNED), "The tuned model answers."
        case "compare":
            message = "One model answers." if conversation.comparing else "Both models answer."
            return dataclasses.replace(conversation, comparing=not conversation.comparing), message
        case "raw":
            message = (
                "Your text is sent unchanged."
                if conversation.fills_template
                else f"Your text fills the training prompt: {chat_model.template}"
            )
            return dataclasses.replace(conversation, fills_template=not conversation.fills_template), message
        case "system":
            if text:
                check_system_is_shown(chat_model.renderer)
            message = f"New conversation {'with this' if text else 'without a'} system message."
            return dataclasses.replace(conversation, system=text or None, turns=()), message
        case "reset":
            return dataclasses.replace(conversation, turns=()), "New conversation."
    return conversation, HELP


def user_message(text: str, conversation: Conversation, chat_model: ChatModel) -> Message:
    """The user's message: the text itself, or the training prompt filled with it."""
    filled = fill_only_column(chat_model.template, text, chat_model.labels) if conversation.fills_template else None
    return Message("user", text if filled is None else filled)


def fit_history(
    turns: tuple[Message, ...], count: Callable[[tuple[Message, ...]], int], limit: int
) -> tuple[Message, ...]:
    """The latest turns whose prompt has at most ``limit`` tokens by ``count``; turns are dropped in pairs."""
    while turns and count(turns) > limit:
        turns = turns[2:]
    return turns


def take_turn(text: str, conversation: Conversation, chat_model: ChatModel, terminal: Terminal) -> Conversation:
    """Sends one message and adds its answer. Raises UserError if the message alone does not fit the context."""
    message = user_message(text, conversation, chat_model)
    system = (Message("system", conversation.system),) if conversation.system else ()

    def prompt(turns: tuple[Message, ...]) -> RenderedPrompt:
        return render_prompt([*system, *turns, message], chat_model.renderer)

    # Reserve room for the longest answer allowed, but at most half of the context, at the expense of the history.
    limit = chat_model.context - min(chat_model.max_new_tokens, chat_model.context // 2)
    turns = fit_history(conversation.turns, lambda turns: len(prompt(turns).token_ids), limit)
    with terminal.interruption() as stopped:
        if conversation.comparing:
            replies = stream_both_replies(prompt(turns), chat_model, terminal.console, stopped)
        else:
            replies = [stream_reply(prompt(turns), conversation.speaker, chat_model, terminal.console, stopped)]
    for note in filter(None, (reply_note(reply, chat_model) for reply in replies)):
        terminal.notify(note)
    if num_dropped := len(conversation.turns) - len(turns):
        terminal.notify(
            f"(dropped the {num_dropped} oldest turns: they no longer fit the context of {chat_model.context} tokens)"
        )
    chosen = next(reply for reply in replies if reply.speaker == conversation.speaker)
    if chosen.text or not chosen.interrupted:
        turns = (*turns, message, Message("assistant", chosen.text))
    return dataclasses.replace(conversation, turns=turns, last=tuple(replies))


def print_tokens(conversation: Conversation, renderer: Renderer, console: Console) -> None:
    """Prints the tokens of the last exchange. Raises UserError if there was none yet."""
    if not conversation.last:
        raise UserError("There is no exchange to show yet")
    for reply in conversation.last:
        seen = seen_tokens(reply, renderer)
        counts = f"{len(seen.token_ids)} tokens, {len(reply.token_ids)} of them generated (on green)"
        console.print(f"{reply.speaker}: {counts}", style="bold", highlight=False, soft_wrap=True)
        console.print(highlighted(seen), end="\n\n", soft_wrap=True)
