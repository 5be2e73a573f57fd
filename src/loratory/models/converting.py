"""Converts a GGUF file into a folder with safetensors weights, once; afterwards it comes from the cache.

The weights are dequantized by Transformers in float32, and each tensor is stored in the narrowest dtype that holds
every one of its numbers exactly. See docs/decisions/0025-gguf-files-are-converted-once.md.
"""

import gc
import math
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

from loratory.bases import SOURCE, cached_model, entry_folder, make_room, writing_to_cache
from loratory.errors import UserError
from loratory.events import Event, EventCallback, ignore_event
from loratory.models.gguf_header import GgufHeader, read_gguf_header
from loratory.models.gguf_tokenizer import check_can_be_split, check_tokens_are_those_of, split_as_stated, stop_ids
from loratory.models.identity import model_hashes
from loratory.models.untrusted import MOST_NUMBERS_PER_STORED, check_implied, check_regular, check_sizes
from loratory.storage import atomic_folder, check_no_pointer, sealed, sha256_of, write_json

FILE = "model.gguf"
LAYER = re.compile(r"blk\.(\d{1,5})\.")
OWN_FILES = re.compile(r".*")
NOT_CAUSAL = {"general", "tokenizer", "t5", "umt5"}
ORIGINAL_MODEL = "use the original model in Transformers' format"
# What the header calls the sizes that config.json has under other names.
SIZES = {
    "num_hidden_layers": "block_count", "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length", "vocab_size": "vocab_size",
}  # fmt: skip
# Factors of the rotary frequencies in Llama 3.1 and later: the wavelengths between which they rise from 1 to the
# largest are fixed by these settings, which every such model has.
ROPE_FACTORS = "rope_freqs.weight"
LONG_ROPE_FACTORS = "rope_factors_long.weight"  # in Phi 3 and 4, which do not always name the way of scaling
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class GgufSource:
    """The GGUF file of which a model was made."""

    file: str
    """Its absolute path."""
    sha256: str
    quantization: str
    """As in "Q4_1"."""
    weights_sha256: str
    """The hash that the converted weights must have."""

    def record(self) -> dict[str, str]:
        """What the record of a run says of it."""
        return {"file": self.file, "sha256": self.sha256, "quantization": self.quantization}


def converted(
    path: Path, on_event: EventCallback = ignore_event, expected_sha256: str | None = None
) -> tuple[Path, GgufSource]:
    """The folder with the model of a GGUF file, converted now if it is not in the cache.

    The file is hashed every time: a hash that is remembered by date and size would miss a file that was replaced with
    its date, and hashing takes less time than loading. Raises UserError if the file cannot be read or converted, or if
    it does not have ``expected_sha256``.
    """
    check_regular(path)
    check_no_pointer(path)
    sha256 = sha256_of([path])
    if expected_sha256 is not None and sha256 != expected_sha256:
        found = f"{sha256[:12]} instead of {expected_sha256[:12]}"
        fix = "pull the model again: its file is damaged"
        raise UserError("The hash of the Ollama model's file is not its name", str(path), found=found, fix=fix)
    folder = entry_folder(sha256)
    cached = cached_model(folder)
    if cached is None:
        header = read_gguf_header(path)
        _check_readable(header, path)
        with writing_to_cache():
            if (cached := cached_model(folder)) is None:  # another process may just have converted it
                size = f"{path.stat().st_size / 1e9:.2f} GB"
                on_event(Event("message", f"Converting {path.name}, {size}; it is done once and kept in the cache"))
                with atomic_folder(folder, OWN_FILES) as new:
                    _convert(path, header, sha256, new)
                make_room(folder)
                cached = cached_model(folder)
    assert cached is not None
    return folder, GgufSource(
        str(path.absolute()), sha256, cached.source["quantization"], cached.source["weights_sha256"]
    )


def _check_readable(header: GgufHeader, path: Path) -> None:
    """Raises UserError if Transformers cannot read this family of models, or if the header asks for far more than the
    tensors contain."""
    families = sorted((GGUF_CONFIG_MAPPING.keys() | GGUF_CONFIG_ARCHS.keys()) - NOT_CAUSAL)
    plain = re.sub(r"[-_]", "", header.architecture)
    if plain not in {family.replace("_", "") for family in families}:
        expected, found = f"one of {', '.join(families)}", header.architecture[:80]
        raise UserError(
            "Transformers cannot read models of this family from GGUF", str(path), expected, found, ORIGINAL_MODEL
        )
    scaling = header.of_architecture("rope.scaling.type")
    stretched = f"rope.scaling.type = {str(scaling)[:80]}" if scaling not in (None, "none") else None
    stretched = LONG_ROPE_FACTORS if LONG_ROPE_FACTORS in header.tensors else stretched
    if stretched and plain not in ("gptoss",):
        raise UserError(
            "Transformers does not read the scaled positions of this GGUF file",
            str(path),
            found=stretched,
            fix=ORIGINAL_MODEL,
        )
    check_can_be_split(header, str(path))
    sizes = {ours: header.of_architecture(theirs) for ours, theirs in SIZES.items()}
    sizes["vocab_size"] = sizes["vocab_size"] or len(header.values["tokenizer.ggml.tokens"])
    shapes = {name: list(tensor.shape) for name, tensor in header.tensors.items()}
    check_sizes(sizes, path)
    check_implied(sizes, shapes, path)
    layers = 1 + max((int(match[1]) for name in shapes if (match := LAYER.match(name))), default=-1)
    if isinstance(sizes["num_hidden_layers"], int) and sizes["num_hidden_layers"] > layers:
        found = f"{layers} layers instead of {sizes['num_hidden_layers']}"
        raise UserError("The GGUF file lacks weights of the model", str(path), found=found, fix=ORIGINAL_MODEL)
    widest = max(max(shape) for shape in shapes.values())
    heads, width = (sizes[key] if isinstance(sizes[key], int) else 1 for key in ("num_attention_heads", "head_dim"))
    experts = header.of_architecture("expert_count")
    if heads * width > MOST_NUMBERS_PER_STORED * widest or (isinstance(experts, int) and experts > widest):
        raise UserError(
            "The header of the GGUF file is damaged",
            str(path),
            found=f"{heads} heads of {width} numbers, {experts} experts",
        )


def _convert(path: Path, header: GgufHeader, sha256: str, new: Path) -> None:
    """Writes the converted model into the folder ``new``. Raises UserError."""
    # Alone in its folder, so that no other file beside it is read.
    link = new / FILE
    try:
        link.symlink_to(path.absolute())
    except OSError:  # Windows lets few users make links
        shutil.copyfile(path, link)
    try:
        _write_tokenizer(path, header, new)
        _write_model(path, header, new)
        tokenizer = AutoTokenizer.from_pretrained(new, trust_remote_code=False, local_files_only=True)
        check_tokens_are_those_of(header, tokenizer, str(path))
    except UserError:
        raise
    except Exception as error:  # Transformers and gguf raise whatever comes of a file that is not as they expect
        text = str(error).splitlines()[0][:300] if str(error) else ""
        found = f"{type(error).__name__}: {text}"
        raise UserError("The GGUF file cannot be converted", str(path), found=found, fix=ORIGINAL_MODEL) from error
    link.unlink()
    hashes = model_hashes(new)
    files = {file.name: sha256_of([file]) for file in sorted(new.iterdir())}
    source = {"file": path.name, "sha256": sha256, "quantization": header.quantization, "files": files}
    versions = {name: version(name) for name in ("loratory", "transformers", "gguf", "torch")}
    write_json(new / SOURCE, sealed({**source, "weights_sha256": hashes["weights"], "versions": versions}))


def _write_tokenizer(path: Path, header: GgufHeader, new: Path) -> None:
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(new, gguf_file=FILE, **options)
    split_as_stated(tokenizer, header)
    tokenizer.save_pretrained(new)


def _write_model(path: Path, header: GgufHeader, new: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        new,
        gguf_file=FILE,
        quantization_config=GgufConfig(gguf_file=FILE, dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    model, info = loaded
    if info["missing_keys"]:
        found = f"missing: {', '.join(sorted(info['missing_keys'])[:3])}"
        raise UserError("The GGUF file lacks weights of the model", str(path), found=found, fix=ORIGINAL_MODEL)
    factors = _scale_positions(model, header, path)
    read, stored = sum(p.numel() for p in model.parameters()), header.numbers - factors
    if read != stored and not header.of_architecture("nextn_predict_layers"):
        raise UserError(
            "Transformers does not read all weights of the GGUF file",
            str(path),
            f"{stored} numbers",
            f"{read} numbers",
            ORIGINAL_MODEL,
        )
    model.generation_config.eos_token_id = stop_ids(header) or None
    for parameter in model.parameters():
        parameter.data = _narrowest(parameter.data)
    model.save_pretrained(new)
    del model, loaded
    gc.collect()


def _narrowest(numbers: Tensor) -> Tensor:
    """The tensor in the narrowest of float16, bfloat16 and float32 that holds all of its numbers exactly."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow = numbers.to(dtype)
        if torch.equal(narrow.to(numbers.dtype), numbers):
            return narrow
    return numbers


def _scale_positions(model: PreTrainedModel, header: GgufHeader, path: Path) -> int:
    """Takes over the factors of Llama 3's rotary frequencies, which Transformers does not read from GGUF.

    Returns how many numbers they are; 0 if the file has none. Raises UserError if they are not those of Llama 3.
    """
    tensor = header.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return 0
    parameters = getattr(model.config, "rope_parameters", None) or {}
    theta = float(parameters.get("rope_theta") or 0)
    with path.open("rb") as file:
        file.seek(tensor.start)
        stored = bytearray(file.read(tensor.end - tensor.start))
    found = torch.frombuffer(stored, dtype=torch.float32) if tensor.type == "F32" else torch.zeros(tensor.numbers)
    factor = float(found.max())
    if (
        theta <= 0
        or not factor >= 1
        or not torch.allclose(found, _llama3_factors(theta, len(found), factor), rtol=1e-4)
    ):
        raise UserError(
            "Transformers does not read the scaled positions of this GGUF file",
            str(path),
            found=ROPE_FACTORS,
            fix=ORIGINAL_MODEL,
        )
    scaled = {"rope_type": "llama3", "rope_theta": theta, "factor": round(factor, 3), **LLAMA3}
    model.config.rope_parameters = scaled  # type: ignore[assignment]
    return tensor.numbers


def _llama3_factors(theta: float, count: int, factor: float) -> Tensor:
    """By how much Llama 3 divides each of its ``count`` rotary frequencies; shape [count].

    As rope_type "llama3" in Transformers: frequencies with a wavelength below 8192 / 4 are kept, those above 8192 are
    divided by ``factor``, and those between are interpolated.
    """
    wavelengths = 2 * math.pi * theta ** (torch.arange(count, dtype=torch.float64) / count)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    turns = LLAMA3["original_max_position_embeddings"] / wavelengths
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - kept) / factor + kept)).float()
