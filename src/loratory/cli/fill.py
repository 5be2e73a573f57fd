"""``loratory fill``: what a masked language model predicts for each mask of a text."""

import dataclasses
from pathlib import Path

import tyro

from loratory.cli.output import print_json, print_message, print_text
from loratory.cli.task_arguments import check_tuned_folder
from loratory.cli.verb import Verb
from loratory.errors import UserError
from loratory.settings import BUILTIN_MASKED


@dataclasses.dataclass(frozen=True)
class FillFlags:
    """Shows the most likely tokens for each mask of a text, by a masked language model."""

    text: tyro.conf.Positional[str]
    """The text, with masks written as [MASK], <mask> or {mask}."""
    run: Path | None = None
    """A run directory or an adapter folder; without it, the base model answers."""
    model: str = BUILTIN_MASKED
    """The base model: a short name (see loratory models), hub id, folder, GGUF file, or ollama:NAME."""
    top: int = 5
    """How many tokens to show for each mask."""
    force: bool = False
    """Accept files of the adapter or the base model that have changed since the training."""
    json: bool = False
    """Print tokens and probabilities as JSON."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(FillFlags, args=arguments, prog="loratory fill")
    if flags.top < 1:
        raise UserError("There is nothing to show", "--top", "1 or more", str(flags.top))
    check_tuned_folder(flags.run)
    from loratory.predict import load, load_plain
    from loratory.tree import fill_masks

    if flags.run is not None:
        tuned = load(flags.run, force=flags.force, on_event=print_message)
        model, renderer, name = tuned.model, tuned.renderer, str(flags.run)
    else:
        base, renderer = load_plain(flags.model, print_message)
        model, name = base.model, flags.model
    if not renderer.is_masked_lm:
        raise UserError("Only a masked language model can fill in masks", name, fix="use loratory ask")
    masks, text = fill_masks(model, renderer, flags.text, flags.top)
    if flags.json:
        guesses = [[{"token": token, "probability": p} for token, p in mask] for mask in masks]
        print_json({"masks": guesses, "text": text})
        return
    for mask in masks:
        print_text("  ".join(f"{token.strip() or token!r} {p:.1%}" for token, p in mask))
    print_text(text)


VERB = Verb(
    "fill",
    '"... [MASK] ..."',
    FillFlags,
    ('loratory fill "The model was trained on a small [MASK]." --model answerdotai/ModernBERT-base',),
    None,
    execute,
)
