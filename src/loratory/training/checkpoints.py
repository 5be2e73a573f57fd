"""Checkpoints: written atomically, verified by hash, and sufficient to resume training bit for bit."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loratory.errors import UserError
from loratory.models import non_finite
from loratory.storage import atomic_folder, sha256_of, write_json
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


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, keep_step: int | None = None
) -> Checkpoint:
    """Writes ``folder/step-NNNNNN``: trained parameters, optimizer moments, random state, and a manifest of hashes.

    Everything is written to a temporary folder, which is renamed once it is complete. Older checkpoints are deleted,
    except the previous one and the one of step ``keep_step``. Raises NotFinite before anything is written.
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
    with atomic_folder(path) as temporary:
        save_file(
            {n: p.detach().cpu().contiguous() for n, p in parameters.items()}, temporary / "parameters.safetensors"
        )
        save_file({n: v.detach().cpu().contiguous() for n, v in moments.items()}, temporary / MOMENTS)
        save_file(_random_state(), temporary / RANDOM)
        hashes = {name: sha256_of([temporary / name]) for name in FILES}
        write_json(temporary / MANIFEST, {"step": step, "sha256": hashes})
    # Checkpoints of later steps are from an earlier attempt that was abandoned because none of them could be read.
    newest = [p for p in _folders(folder) if _step(p) <= step][-KEEP:]
    for other in set(_folders(folder)) - set(newest):
        if _step(other) != keep_step:
            shutil.rmtree(other)
    return Checkpoint(path, step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _folders(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    return sorted((p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()), key=_step)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
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
        manifest = json.loads((path / MANIFEST).read_text())
        step, hashes = int(manifest["step"]), dict(manifest["sha256"])
        if step != _step(path) or set(hashes) != set(FILES):
            raise ValueError("the manifest lists a different step or different files")
        changed = [name for name, digest in hashes.items() if sha256_of([path / name]) != digest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the manifest or a file cannot be read ({error})") from error
    if changed:
        raise ValueError(f"{', '.join(changed)} changed since it was written")
    return Checkpoint(path, step)


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
