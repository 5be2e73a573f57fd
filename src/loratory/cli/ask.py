"""``loratory ask``: one question, one streamed answer."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import tyro

from loratory.cli.output import print_json, print_message, print_text
from loratory.cli.task_arguments import check_tuned_folder
from loratory.cli.verb import Verb
from loratory.settings import ModelConfig


@dataclasses.dataclass(frozen=True)
class AskFlags:
    """Asks a model one question and streams its answer."""

    text: tyro.conf.Positional[str]
    """The user message."""
    run: Path | None = None
    """A run directory or an adapter folder; without it, the base model answers."""
    model: str = ModelConfig().name
    """The base model: a short name (see loratory models), hub id, folder, GGUF file, or ollama:NAME."""
    system: str | None = None
    """System message; a run brings its own."""
    max_new_tokens: int = 200
    """Maximum number of tokens in the answer."""
    force: bool = False
    """Accept files of the adapter or the base model that have changed since the training."""
    json: bool = False
    """Print {"answer": ...} once the answer is complete."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(AskFlags, args=arguments, prog="loratory ask")
    pieces = _answer(flags)
    if flags.json:
        print_json({"answer": "".join(pieces).strip()})
        return
    for piece in pieces:
        print_text(piece, end="")
    print()


def _answer(flags: AskFlags) -> Iterable[str]:
    check_tuned_folder(flags.run)
    from loratory.predict import ask, load, load_plain

    if flags.run is not None:
        return load(flags.run, force=flags.force, on_event=print_message).ask(
            flags.text, flags.system, flags.max_new_tokens
        )
    base, renderer = load_plain(flags.model, print_message)
    return ask(base.model, renderer, flags.text, flags.system, flags.max_new_tokens)


VERB = Verb("ask", '"TEXT"', AskFlags, ('loratory ask "Where is the nearest star?" --run runs/papers',), None, execute)
