"""An adapter in the place of a model: training goes on from it, and its base model is the base model.

In: the folder of an adapter, by Loratory or by PEFT. Out: where its base model is, and the settings that it decides.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.errors import UserError
from loratory.events import EventCallback, ignore_event
from loratory.models.card import read_card
from loratory.models.finding import FoundModel, find_files
from loratory.models.identity import WEIGHTS, differing_files
from loratory.models.untrusted import NOT_PLAIN_LORA, check_adapter_folder, check_files, read_json
from loratory.settings import AdapterConfig, ModelConfig
from loratory.storage import CARD, hashes_of

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Other ways to begin change the base model too.
PLAIN_BEGINNINGS = (True, False, "gaussian", "orthogonal")


@dataclass(frozen=True)
class StartingAdapter:
    """The adapter from which training goes on."""

    folder: Path
    revision: str | None
    """Commit hash of the adapter on the hub; None for a folder."""
    base: ModelConfig
    """Where its base model is."""
    base_hashes: Mapping[str, str]
    """The recorded hashes of the base model's files; empty if PEFT wrote the adapter, which records none."""
    hashes: Mapping[str, str]
    """The hashes of the adapter's files."""
    decided: AdapterConfig
    """The settings of the adapter; those that concern training alone have their defaults."""

    def check_base(self, found: Mapping[str, str]) -> None:
        """Raises UserError if the base model is not the one on which the adapter was trained."""
        if self.base_hashes and (different := differing_files(self.base_hashes, found)):
            fix = f"restore the files of {self.base.name}"
            where = str(self.folder)
            raise UserError("The adapter was trained on a different base model", where, found=different, fix=fix)


def starting_adapter(config: ModelConfig, found: FoundModel) -> StartingAdapter | None:
    """The adapter that ``config`` names, whose files are ``found``; None if it names a model.

    Raises UserError if it is damaged, or has features that cannot be trained here.
    """
    folder, revision = found.folder, found.revision
    if not (folder / ADAPTER_CONFIG).exists() or (folder / "config.json").exists():
        return None
    check_files(folder)
    card = read_card(folder) if (folder / CARD).exists() else None
    settings = read_json(folder / ADAPTER_CONFIG)
    _check_supported(folder, settings)
    check_adapter_folder(folder)
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise UserError("The adapter has no safetensors weights", str(folder), expected=ADAPTER_WEIGHTS)
    base = card["base"] if card else {}
    name, commit = base.get("name") or settings.get("base_model_name_or_path"), base.get("revision")
    commit = commit or settings.get("revision")
    if not isinstance(name, str) or not name.strip() or not isinstance(commit, str | None):
        where = str(folder / ADAPTER_CONFIG)
        raise UserError("The adapter does not say which base model it needs", where, "base_model_name_or_path")
    hashes = {WEIGHTS: base["weights_sha256"], **(base["files"] or {})} if card else {}
    return StartingAdapter(
        folder,
        revision,
        dataclasses.replace(config, name=name, revision=commit),
        hashes,
        {f"adapter/{k}": v for k, v in hashes_of(folder, (ADAPTER_CONFIG, ADAPTER_WEIGHTS)).items()},
        _decided(folder, settings),
    )


def base_files(adapter: StartingAdapter, on_event: EventCallback = ignore_event) -> FoundModel:
    """``find_files`` of the base model. Raises UserError, which names adapter and base, if it cannot be found."""
    try:
        return find_files(adapter.base, on_event)
    except UserError as error:
        raise UserError(
            "The adapter's base model cannot be found",
            f"the adapter in {adapter.folder}",
            f"its base model, {adapter.base.name}",
            error.what,
            error.fix or "put the base model there, or correct base_model_name_or_path in adapter_config.json",
        ) from error


def merged_settings(config: AdapterConfig, start: StartingAdapter) -> tuple[AdapterConfig, list[str]]:
    """The settings of a training that goes on from an adapter, and the names of those that the adapter decided.

    Raises UserError for a setting that contradicts the adapter. Dropout and lora_plus concern the training alone.
    """
    default = AdapterConfig()
    if config.kind == "full":
        fix = 'remove kind = "full", or merge the adapter into its base model first (PEFT: merge_and_unload)'
        raise UserError(
            "Full fine-tuning cannot go on from an adapter", "[adapter] kind", found=str(start.folder), fix=fix
        )
    changes: dict[str, Any] = {}
    for key in ("rank", "alpha", "rslora", "dora", "targets", "layers"):
        wanted, given = getattr(config, key), getattr(start.decided, key)
        same = (
            sorted(wanted) == sorted(given)
            if isinstance(wanted, tuple) and isinstance(given, tuple)
            else wanted == given
        )
        if not same and wanted != getattr(default, key):
            raise UserError(
                f"adapter.{key} contradicts the adapter from which training goes on",
                f"[adapter] {key}, {start.folder}",
                repr(given),
                repr(wanted),
                "remove this setting: it is taken from the adapter",
            )
        if wanted != given:
            changes[key] = given
    if config.dropout == default.dropout != start.decided.dropout:
        changes["dropout"] = start.decided.dropout
    return dataclasses.replace(config, **changes), list(changes)


def _check_supported(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError if PEFT's settings have a feature that cannot be trained here."""
    found = {key: settings[key] for key in NOT_PLAIN_LORA if settings.get(key)}
    if settings.get("peft_type") != "LORA":
        found["peft_type"] = settings.get("peft_type")
    if settings.get("bias", "none") != "none":
        found["bias"] = settings["bias"]
    if settings.get("init_lora_weights", True) not in PLAIN_BEGINNINGS:
        found["init_lora_weights"] = settings["init_lora_weights"]
    if settings.get("task_type") not in ("CAUSAL_LM", None):
        found["task_type"] = settings["task_type"]
    alpha = settings.get("lora_alpha")
    if isinstance(alpha, float) and not alpha.is_integer():
        found["lora_alpha"] = alpha
    if found:
        key, value = next(iter(found.items()))
        fix = "choose another adapter, or merge it into its base model (PEFT: merge_and_unload) and train that"
        raise UserError(
            "Training cannot go on from this kind of adapter",
            f"{folder / ADAPTER_CONFIG}, {key}",
            "a plain LoRA adapter, which may be rank-stabilized or DoRA",
            repr(value)[:100],
            fix,
        )


def _decided(folder: Path, settings: Mapping[str, Any]) -> AdapterConfig:
    """The settings in adapter_config.json, which ``check_adapter_folder`` has checked in part."""
    targets, layers = settings["target_modules"], settings.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    dropout = settings.get("lora_dropout", 0.0)
    flags = [settings.get("use_rslora", False), settings.get("use_dora", False)]
    valid = (
        isinstance(dropout, int | float) and 0 <= dropout < 1 and all(isinstance(flag, bool) for flag in flags)
        and (layers is None or (isinstance(layers, list) and all(type(layer) is int for layer in layers)))
    )  # fmt: skip
    if not valid:
        found = repr({"lora_dropout": dropout, "layers_to_transform": layers, "use_rslora, use_dora": flags})[:200]
        raise UserError("A setting of the adapter cannot be right", str(folder / ADAPTER_CONFIG), found=found)
    return AdapterConfig(
        rank=settings["r"],
        alpha=int(settings["lora_alpha"]),
        rslora=flags[0],
        dora=flags[1],
        dropout=float(dropout),
        targets="all-linear" if targets == "all-linear" else tuple(sorted(targets)),
        layers=tuple(layers) if layers else "all",
    )
