"""Checks the files of a model or an adapter before any library reads them: sizes, kinds, headers, and what they imply.

The headers of the safetensors files say how many numbers there really are. Settings that ask for far more are rejected
before anything is allocated.
"""

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratory.errors import UserError
from loratory.storage import check_no_pointer, read_json_object

MAX_SETTINGS, MAX_TEXTS, MAX_HEADER = 16 << 20, 256 << 20, 100 << 20  # bytes
MAX_DEPTH = 32  # of objects in config.json
# What a packed weight can hold at most, such as two 4-bit numbers in a byte, with room for weights that are shared.
MOST_NUMBERS_PER_STORED = 8
LARGEST = {
    "num_hidden_layers": 10_000, "n_layer": 10_000, "n_layers": 10_000, "num_layers": 10_000,
    "hidden_size": 1 << 20, "n_embd": 1 << 20, "d_model": 1 << 20, "vocab_size": 1 << 24,
    "num_attention_heads": 1 << 16, "num_key_value_heads": 1 << 16, "n_head": 1 << 16, "head_dim": 1 << 16,
    "intermediate_size": 1 << 24, "n_inner": 1 << 24, "max_position_embeddings": 1 << 31, "n_positions": 1 << 20,
    "type_vocab_size": 1 << 16,
}  # fmt: skip
NUMBER_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
RANKS = 1 << 16
# Settings of PEFT that change which numbers an adapter has, or what they mean.
NOT_PLAIN_LORA = (
    "modules_to_save", "target_parameters", "trainable_token_indices", "rank_pattern", "alpha_pattern",
    "layers_pattern", "layer_replication", "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens",
    "arrow_config", "monteclora_config", "kasa_config", "velora_config", "megatron_config",
)  # fmt: skip
# The only pattern that earlier versions of Loratory wrote into adapters.
EXCLUDED_BEFORE = r".*\.(gate|router|experts)(\..*)?"


def check_model_folder(folder: Path) -> None:
    """Raises UserError if the folder's files cannot be those of a model: something is not a file or too large, a header
    of safetensors is wrong, or config.json asks for much more than the weights contain."""
    check_files(folder)
    config = folder / "config.json"
    if not config.exists():
        return
    settings = read_json(config)
    _check_depth(settings, config)
    text = settings.get("text_config")
    for part in (settings, text if isinstance(text, dict) else {}):
        check_sizes(part, config)
    shapes = tensor_shapes(folder)
    if shapes:
        check_implied({**settings, **(text if isinstance(text, dict) else {})}, shapes, config)


def check_adapter_folder(folder: Path) -> None:
    """Raises UserError if the folder's files cannot be those of an adapter: as for a model, or if a setting has the
    wrong type, would be run as a pattern, or differs from the matrices that the weights contain."""
    check_files(folder)
    path = folder / "adapter_config.json"
    if not path.exists():
        return
    settings = read_json(path)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not _is_size(rank, RANKS):
        raise _wrong(path, "r", f"a whole number from 1 to {RANKS}", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _wrong(path, "lora_alpha", "a number", alpha)
    targets = settings.get("target_modules")
    named = isinstance(targets, list) and all(isinstance(name, str) for name in targets) and len(targets) <= 10_000
    if not named and targets != "all-linear":
        raise _wrong(path, "target_modules", "a list of names", targets)
    excluded = settings.get("exclude_modules")
    if isinstance(excluded, str) and excluded != EXCLUDED_BEFORE:
        raise _wrong(path, "exclude_modules", "a list of names", excluded)
    for key in NOT_PLAIN_LORA:
        if settings.get(key):
            raise _wrong(path, key, "nothing", settings[key])
    for name, shape in tensor_shapes(folder).items():
        if name.endswith("lora_A.weight") and shape[:1] != [rank]:
            raise _wrong(path, "r", f"{shape[0] if shape else 0}, as in the weights", rank)


def check_files(folder: Path) -> None:
    """Raises UserError for a file that is a pipe or a device, a pointer of Git LFS, or too large for its kind."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            check_no_pointer(path)
        if path.suffix not in (".json", ".jinja", ".model", ".txt", ".safetensors"):
            continue
        check_regular(path)
        check_no_pointer(path)
        limit = {".json": MAX_SETTINGS, ".jinja": MAX_SETTINGS, ".safetensors": 1 << 62}.get(path.suffix, MAX_TEXTS)
        limit = MAX_TEXTS if path.name in ("tokenizer.json", "vocab.json") or "index" in path.name else limit
        if (size := path.stat().st_size) > limit:
            raise UserError("A file of the model is too large", str(path), f"at most {limit} bytes", str(size))
        if path.name.endswith(".safetensors.index.json"):
            _check_index(path)


def check_regular(path: Path) -> None:
    """Raises UserError if the path, or what a link leads to, is not a file: reading a pipe would wait forever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError("The file cannot be read", str(path), found=str(error)) from error
    if not stat.S_ISREG(mode):
        raise UserError("Something in the model's folder is not a file", str(path), found=stat.filemode(mode))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from an untrusted file. Raises UserError if the file is unreadable or not a JSON object."""
    try:
        return read_json_object(path)
    except ValueError as error:
        raise UserError("The file cannot be read", str(path), "a JSON object", str(error)) from error


def _check_index(path: Path) -> None:
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict):
        raise _wrong(path, "weight_map", "an object", names)
    for name in {str(name) for name in names.values()}:
        if not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
            raise _wrong(path, "weight_map", "names of safetensors files in this folder", name)


def _check_depth(value: Any, path: Path) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        lists = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [inner for item in lists if isinstance(item, list) for inner in item]
        if not level:
            return
    raise UserError("A file of the model is nested too deeply", str(path), f"at most {MAX_DEPTH} levels")


def _is_size(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def check_sizes(settings: Mapping[str, Any], path: Path) -> None:
    """Raises UserError if one of the known sizes of a model is not a whole number in its range."""
    for key, largest in LARGEST.items():
        value = settings.get(key)
        smallest = 0 if key in ("type_vocab_size", "intermediate_size", "n_inner") else 1
        if value is None or isinstance(value, list) or (value == 0 == smallest and not isinstance(value, bool)):
            continue  # a list: one size for each layer
        if not _is_size(value, largest):
            raise _wrong(path, key, f"a whole number from {smallest} to {largest}", value)


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """The shapes of all tensors in the folder's safetensors files. Raises UserError if a header is wrong."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        check_regular(path)
        for name, shape in _header_shapes(path).items():
            if name in shapes:
                raise UserError("Two files contain the same weights", str(path), found=name[:100])
            shapes[name] = shape
    return shapes


def _header_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes in one header. The format is described at https://huggingface.co/docs/safetensors."""

    def damaged(found: str) -> UserError:
        return UserError("The header of the weights is damaged", str(path), found=found[:200])

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("two entries have the same name")
        return dict(pairs)

    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise damaged(f"{length} bytes long, in a file of {size} bytes")
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=unique)
            header.pop("__metadata__", None)
            shapes, ends = {}, []
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                shape, bits = entry["shape"], NUMBER_BITS[entry["dtype"]]
                whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, start, end))
                if not whole or len(shape) > 16 or math.prod(shape) * bits != 8 * (end - start):
                    raise ValueError(f"the shape and the offsets of {name[:100]!r} do not agree")
                ends.append((start, end))
                shapes[name] = shape
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise damaged(f"{type(error).__name__}: {error}") from error
    expected = 0
    for start, end in sorted(ends):
        if start != expected:
            raise damaged("the tensors overlap or leave gaps")
        expected = end
    if expected != size - 8 - length:
        raise damaged(f"it describes {expected} bytes of weights, and the file has {size - 8 - length}")
    return shapes


def check_implied(settings: Mapping[str, Any], shapes: Mapping[str, list[int]], path: Path) -> None:
    """Raises UserError if the settings imply far more numbers or layers than the weights contain."""
    stored = MOST_NUMBERS_PER_STORED * sum(math.prod(shape) for shape in shapes.values())
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    width = 1
    for key in ("hidden_size", "n_embd", "d_model", "embedding_size"):  # the last one that is set is the embeddings'
        width = settings[key] if isinstance(settings.get(key), int) else width
        if width > MOST_NUMBERS_PER_STORED * widest:
            raise _wrong(path, key, "no more than the weights contain", width)
    for key in ("vocab_size", "intermediate_size", "n_inner", "n_positions"):
        size = settings.get(key)
        if isinstance(size, int) and size * width > stored:
            raise _wrong(path, key, "no more than the weights contain", size)
    # Some models use the same layer several times.
    numbered = [int(part) for name in shapes for part in name.split(".") if part.isdecimal() and len(part) < 7]
    most = 4 * (max(numbered, default=0) + 1) + 96
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if isinstance(settings.get(key), int) and settings[key] > most:
            raise _wrong(path, key, "no more layers than the weights contain", settings[key])


def _wrong(path: Path, key: str, expected: str, found: Any) -> UserError:
    return UserError("A setting of the model cannot be right", f"{path}, {key}", expected, repr(found)[:100])
