"""``loratory models``: the known models, where they are, and what this machine can do with them."""

import dataclasses
from typing import TYPE_CHECKING, Any

import tyro

from loratory.cli.output import print_json, print_text, print_wide
from loratory.cli.task_arguments import EPOCHS, EXAMPLES, TOKENS_PER_EXAMPLE
from loratory.cli.verb import Verb
from loratory.errors import UserError

if TYPE_CHECKING:
    from loratory.bases import KnownModel, Place

FOUND = {"hub cache": "here: hub cache", "package": "here: package", "ollama": "here: Ollama"}


@dataclasses.dataclass(frozen=True)
class ModelsFlags:
    """Lists the known models by their short names, for model.name: where each one is, and whether this machine has the
    memory and the speed to fine-tune it with LoRA. Downloads nothing. The minutes are an estimate for 500 examples of
    250 tokens and 3 epochs, from a matrix product timed on this machine."""

    cache: bool = False
    """List the models that were converted from GGUF files and are kept in the cache instead."""
    clear_cache: bool = False
    """Remove them all; they are converted again when they are used."""
    json: bool = False
    """Print JSON."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(ModelsFlags, args=arguments, prog="loratory models")
    if flags.cache and flags.clear_cache:
        raise UserError("--cache and --clear-cache exclude each other", fix="give one of them")
    if flags.clear_cache:
        _clear(flags.json)
    elif flags.cache:
        _show_cache(flags.json)
    else:
        _show_known(flags.json)


def _clear(as_json: bool) -> None:
    from loratory.bases import cache_folder, clear_cache

    freed = clear_cache()
    if as_json:
        print_json({"folder": str(cache_folder()), "freed_bytes": freed})
    else:
        print_text(f"Removed {freed / 1e9:.2f} GB of converted models from {cache_folder()}")


def _show_cache(as_json: bool) -> None:
    from datetime import datetime

    from rich.table import Table

    from loratory.bases import cache_folder, cached_models

    rows = [
        {
            "folder": str(model.folder),
            **{key: model.source.get(key) for key in ("file", "sha256", "quantization")},
            "bytes": model.bytes,
            "last_used": datetime.fromtimestamp(model.last_used).astimezone().isoformat(timespec="seconds"),
        }
        for model in cached_models()
    ]
    if as_json:
        print_json({"folder": str(cache_folder()), "models": rows})
        return
    if rows:
        table = Table("GGUF file", "quantization", "hash", "size", "last used", box=None)
        for row in rows:
            size = f"{row['bytes'] / 1e9:.2f} GB"
            table.add_row(row["file"], row["quantization"], row["sha256"][:12], size, row["last_used"])
        print_wide(table)
    total = sum(row["bytes"] for row in rows) / 1e9
    print_text(f"{len(rows)} converted models, {total:.2f} GB, in {cache_folder()}")


def _show_known(as_json: bool) -> None:
    from rich.table import Table

    from loratory.bases import known_places
    from loratory.machine import matmul_flops, memory_bytes, resolve_machine

    machine = resolve_machine("auto", "auto", 0)
    flops, memory = matmul_flops(machine.device, machine.matmul_dtype), memory_bytes(machine.device)
    rows = [_row(model, place, flops, memory) for model, place in known_places()]
    if as_json:
        measured = {
            "memory_bytes": memory,
            "flops": flops,
            "dtype": machine.matmul_dtype_name,
            "device": str(machine.device),
        }
        print_json({"machine": measured, "models": rows})
        return
    headings = ("name", "where", "parameters", "context", "license", "memory", "training", "hub id")
    table = Table(*headings, box=None)
    for row in rows:
        table.add_row(
            row["name"],
            FOUND.get(row["where"]) or f"to download: {row['download_gigabytes']:.2f} GB",
            f"{row['parameters'] / 1e9:.2f} B",
            f"{row['context']:,}",
            row["license"],
            f"{row['memory_bytes'] / 1024**3:.1f} GiB" + ("" if row["fits"] else ": too much"),
            _duration(row["training_seconds"]) if row["fits"] else "-",
            row["hub_id"],
        )
    print_wide(table)
    print_text(
        f"This machine: {memory / 1024**3:.0f} GiB of memory, {flops / 1e12:.2g} TFLOP/s "
        f"({machine.matmul_dtype_name}, {machine.device}). "
        f"Training: LoRA on {EXAMPLES} examples of {TOKENS_PER_EXAMPLE} tokens, {EPOCHS} epochs, estimated.\n"
        "Use one with --model.name NAME; a model that is not here is downloaded from the hub on first use."
    )


def _row(model: "KnownModel", place: "Place", flops: float, memory: int) -> dict[str, Any]:
    from loratory.bases import fits, memory_needed, training_seconds

    return {
        "name": model.short,
        "hub_id": model.hub_id,
        "where": place.kind,
        "model_name": place.name,
        "parameters": model.parameters,
        "context": model.context,
        "license": model.license,
        "open": model.is_open,
        "download_gigabytes": None if place.is_here else model.gigabytes,
        "memory_bytes": memory_needed(model.parameters),
        "fits": fits(model.parameters, memory),
        "training_seconds": training_seconds(model.parameters, EXAMPLES * TOKENS_PER_EXAMPLE * EPOCHS, flops),
    }


def _duration(seconds: float) -> str:
    from loratory.metrics import duration

    return duration(seconds)


VERB = Verb(
    "models",
    "",
    ModelsFlags,
    (
        "loratory models",
        "loratory models --cache",
        "loratory run papers.csv --answer category --model.name smollm2-135m",
    ),
    None,
    execute,
)
