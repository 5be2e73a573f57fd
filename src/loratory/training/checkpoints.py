"""Checkpoints: written atomically, verified by hash, and sufficient to resume training bit for bit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loratory.errors import UserError
from loratory.models import non_finite
from loratory.storage import (
    CHECKPOINT_FILES,
    atomic_folder,
    changed_files,
    hashes_of,
    read_json_object,
    remove_own_folder,
    seal_is_intact,
    sealed,
    write_json,
)
from loratory.training.loop import NotFinite
from loratory.training.optimizer import trainable_parameters

MANIFEST = "manifest.json"
PARAMETERS, MOMENTS, RANDOM = FILES = ("parameters.safetensors", "optimizer.safetensors", "random.safetensors")
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    step: int
    losses: Mapping[int, float] = field(default_factory=dict)
    """The validation losses so far: optimizer step -> mean loss per token."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    keep_step: int | None = None,
    losses: Mapping[int, float] | None = None,
) -> Checkpoint:
    """Writes ``folder/step-NNNNNN``: trained parameters, optimizer moments, random state, and a manifest of hashes.

    Everything is written to a temporary folder, which is renamed once it is complete. The manifest also has the
    validation ``losses``, on which the choice of the best step depends. Older checkpoints are deleted, except the
    previous one and the one of step ``keep_step``. Raises NotFinite before anything is written.
    """
    path = folder / f"step-{step:06d}"
    parameters = trainable_parameters(model)
    moments = {
        f"{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    if bad := non_finite([*parameters.items(), *moments.items()]):
        raise NotFinite("weights", step, f"in {bad}")
    with atomic_folder(path, CHECKPOINT_FILES) as temporary:
        save_file(
            {n: p.detach().cpu().contiguous() for n, p in parameters.items()}, temporary / "parameters.safetensors"
        )
        save_file({n: v.detach().cpu().contiguous() for n, v in moments.items()}, temporary / MOMENTS)
        save_file(_random_state(), temporary / RANDOM)
        manifest = {"step": step, "sha256": hashes_of(temporary, FILES), "losses": [*(losses or {}).items()]}
        write_json(temporary / MANIFEST, sealed(manifest))
    # Checkpoints of later steps are from an earlier attempt that was abandoned because none of them could be read.
    newest = [p for p in _folders(folder) if _step(p) <= step][-KEEP:]
    for other in set(_folders(folder)) - set(newest):
        if _step(other) != keep_step:
            remove_own_folder(other, CHECKPOINT_FILES)
    return Checkpoint(path, step, losses or {})


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _folders(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    found = (p for p in folder.glob("step-*") if re.fullmatch(r"step-[0-9]{6,}", p.name) and not p.is_symlink())
    return sorted(found, key=_step)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def latest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files match its manifest, and a sentence for each checkpoint that was skipped."""
    skipped = []
    for path in reversed(_folders(folder)):
        try:
            return verify_checkpoint(path), skipped
        except ValueError as error:
            skipped.append(f"Skipping checkpoint {path.name}: {error}")
    return None, skipped


def checkpoint_at(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step. Raises ValueError like ``verify_checkpoint``."""
    return verify_checkpoint(folder / f"step-{step:06d}")


def verify_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises ValueError, with the reason, if its files do not match its manifest."""
    try:
        manifest = read_json_object(path / MANIFEST)
        step, hashes = int(manifest["step"]), dict(manifest["sha256"])
        losses = {int(at): float(loss) for at, loss in manifest.get("losses", ())}
        if step != _step(path) or set(hashes) != set(FILES) or not seal_is_intact(manifest):
            raise ValueError("the manifest was changed, or lists a different step or different files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the manifest or a file cannot be read ({error})") from error
    if changed := changed_files(path, hashes):
        raise ValueError(f"{', '.join(changed)} changed since it was written")
    return Checkpoint(path, step, losses)


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Restores the parameters (and, if an optimizer is given, moments and random state) bit for bit.

    Raises UserError if they contain NaN or infinite values.
    """
    values = load_file(checkpoint.path / PARAMETERS)
    moments = load_file(checkpoint.path / MOMENTS) if optimizer is not None else {}
    if bad := non_finite([*values.items(), *moments.items()]):
        fix = "delete this folder; training then resumes from an earlier checkpoint or from the start"
        raise UserError("The checkpoint contains NaN or infinite values", str(checkpoint.path), None, f"in {bad}", fix)
    parameters = trainable_parameters(model)
    assert values.keys() == parameters.keys(), "the checkpoint belongs to a different model or adapter"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
    if optimizer is None:
        return
    for name, parameter in parameters.items():
        state = {k.removeprefix(f"{name}."): v for k, v in moments.items() if k.rpartition(".")[0] == name}
        optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    random_state = load_file(checkpoint.path / RANDOM)
    torch.set_rng_state(random_state["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([random_state[f"cuda{i}"] for i in range(torch.cuda.device_count())])
    if torch.backends.mps.is_available():
        torch.mps.set_rng_state(random_state["mps"])
