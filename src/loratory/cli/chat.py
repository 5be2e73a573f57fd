"""``loratory chat``: a conversation in the terminal."""

import dataclasses
from pathlib import Path

import tyro

from loratory.cli.output import print_message
from loratory.cli.task_arguments import check_tuned_folder
from loratory.cli.verb import Verb
from loratory.errors import UserError, exit_code_of
from loratory.settings import ModelConfig


@dataclasses.dataclass(frozen=True)
class ChatFlags:
    """Holds a conversation with a model in the terminal. Type /help for its commands; lines may also be piped in."""

    run: tyro.conf.Positional[Path | None] = None
    """A run directory or an adapter folder; without it, the base model answers."""
    model: str = ModelConfig().name
    """The base model: a short name (see loratory models), hub id, folder, GGUF file, or ollama:NAME."""
    system: str | None = None
    """System message; a run brings its own."""
    max_new_tokens: int = 200
    """Maximum number of tokens in an answer."""
    force: bool = False
    """Accept files of the adapter or the base model that have changed since the training."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(ChatFlags, args=arguments, prog="loratory chat")
    if flags.run is not None and flags.model != ModelConfig().name:
        raise UserError("A run brings its own model", "--model", fix="give either a run or --model")
    check_tuned_folder(flags.run)
    from loratory.predict import converse, open_chat, standard_terminal, welcome_message

    chat_model, conversation = open_chat(
        flags.run, flags.model, flags.system, flags.max_new_tokens, flags.force, print_message
    )
    terminal = standard_terminal()
    terminal.notify(welcome_message(chat_model, conversation))
    try:
        converse(chat_model, conversation, terminal)
    except KeyboardInterrupt as error:  # there is nothing to resume
        terminal.notify("")
        raise SystemExit(exit_code_of(error)) from None


VERB = Verb("chat", "[RUN]", ChatFlags, ("loratory chat runs/papers",), None, execute)
