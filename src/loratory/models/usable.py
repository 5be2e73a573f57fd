"""Checks that a folder contains a model that can be trained: complete safetensors weights that are not quantized."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from loratory.errors import UserError
from loratory.models.untrusted import check_files, read_json

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
OTHER_FORMATS = ("*.h5", "*.msgpack", "*.onnx", "*.npz")
INDEX = "*.safetensors.index.json"
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
# Where config.json says that the weights are quantized; the last is MLX's.
QUANTIZED = ("quantization_config", "compression_config", "quantization")
# What publishers append to the name of a model whose weights they have quantized.
QUANTIZED_NAME = re.compile(
    r"[-_.](unsloth|quantized|quant|dynamic|dwq|awq|gptq|hqq|aqlm|exl[23]|eetq|quanto|marlin|torchao|bnb|gguf|mlx"
    r"|[248]-?bits?|q[248]|g(32|64|128)|(u?int|nf|fp|mxfp|nvfp)[48]|w\d+a\d+(-g\d+)?)$",
    re.IGNORECASE,
)
# The format in which gpt-oss was trained and published: there is no unquantized original.
TRAINED_QUANTIZED = "mxfp4"
HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
MAX_READ_ME = 1 << 20  # bytes


def check_weights(folder: Path, name: str) -> None:
    """Raises UserError unless the folder has the configuration and all safetensors weights of a model."""
    check_files(folder)
    if not (folder / "config.json").exists():
        raise UserError("No model in this folder", name, expected="config.json and *.safetensors")
    if (folder / "adapter_config.json").exists():
        fix = "move its adapter_* files to another folder, or merge them into the model"
        raise UserError("The model's folder also contains an adapter", name, fix=fix)
    if missing := _missing_files(folder):
        found = f"missing: {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        fix = "download it again (hf download goes on where it stopped), or copy the files from where it is complete"
        raise UserError("Files of the model's weights are missing", name, found=found, fix=fix)
    if list(folder.glob("*.safetensors")):
        return
    if pickles := _names(folder, PICKLES):
        raise UserError(
            "The model's weights are stored as pickle, which can run arbitrary code when loaded",
            name,
            expected="*.safetensors",
            found=pickles,
            fix="use a copy or a revision with safetensors, or convert them in an isolated environment: load the model "
            "with Transformers and call save_pretrained",
        )
    if others := _names(folder, OTHER_FORMATS):
        fix = "use the original model in Transformers' format"
        raise UserError(
            "The model's weights are in a format that cannot be trained", name, "*.safetensors", others, fix
        )
    raise UserError("The model has no weights", name, expected="*.safetensors")


def _names(folder: Path, patterns: tuple[str, ...]) -> str:
    return ", ".join(sorted(path.name for pattern in patterns for path in folder.glob(pattern))[:3])


def _missing_files(folder: Path) -> list[str]:
    """The files of weights that an index lists, or that the numbers in other files' names call for, but are absent."""
    present = {path.name for path in folder.glob("*.safetensors")}
    if "model.safetensors" in present:  # it is the only one that is read
        return []
    needed: set[str] = set()
    for path in folder.glob(INDEX):
        needed.update(map(str, read_json(path)["weight_map"].values()))  # check_files has checked the index
    for match in filter(None, map(SHARD.fullmatch, present)):
        needed.update(f"{match[1]}-{i:05}-of-{match[3]}.safetensors" for i in range(1, int(match[3]) + 1))
    return sorted(needed - present)


def check_not_quantized(folder: Path, name: str) -> None:
    """Raises UserError if config.json says that the weights are quantized. Names the unquantized model if it can."""
    check_files(folder)
    if not (folder / "config.json").exists():
        return
    settings = read_json(folder / "config.json")
    text = settings.get("text_config")
    parts = (settings, text if isinstance(text, dict) else {})
    found = next((part[key] for part in parts for key in QUANTIZED if part.get(key)), None)
    if found is None:
        return
    method = found.get("quant_method") or found.get("quantization_type") if isinstance(found, dict) else None
    bits = next((f"{n} bits" for n in (4, 8) if isinstance(found, dict) and found.get(f"load_in_{n}bit")), None)
    described = ", ".join(str(part)[:40] for part in (method, bits) if part) or "quantization settings in config.json"
    unquantized = _unquantized_name(folder, name, settings)
    fix = f"use the unquantized model{f': look for {unquantized}' if unquantized else ' from which it was made'}"
    if method == TRAINED_QUANTIZED and not unquantized:
        fix = f"use a copy in bfloat16: look for {Path(name).name}-BF16"
    raise UserError("This is a quantized base model: use the unquantized one", name, found=described, fix=fix)


def _unquantized_name(folder: Path, name: str, settings: dict[str, Any]) -> str | None:
    """The name of the model from which a quantized one was made; None if nothing says it.

    It is the base model in the folder's README, else a name that has an ending for quantized models, without that.
    """
    base = _base_in_read_me(folder)
    origin = settings.get("_name_or_path")
    hub_id = name if HUB_ID.fullmatch(name) and not Path(name).is_dir() else Path(name).resolve().name
    names = [base, hub_id, origin if isinstance(origin, str) and HUB_ID.fullmatch(origin) else None]
    stripped = [_without_endings(name) for name in names if name]
    if base:
        return stripped[0]
    return next((short for short, full in zip(stripped, filter(None, names), strict=True) if short != full), None)


def _without_endings(name: str) -> str:
    while (shorter := QUANTIZED_NAME.sub("", name)) != name:
        name = shorter
    return name


def _base_in_read_me(folder: Path) -> str | None:
    path = folder / "README.md"
    if not path.is_file() or path.stat().st_size > MAX_READ_ME:
        return None
    try:
        base = (metadata_load(path) or {}).get("base_model")
    except Exception:  # the README is not the model's: whatever is wrong with it does not matter
        return None
    base = base[0] if isinstance(base, list) and base else base
    return base if isinstance(base, str) and HUB_ID.fullmatch(base) else None
