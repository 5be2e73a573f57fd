"""The card of a saved adapter or model: loratory.json, with what PEFT and Transformers do not store.

That is the base model's hashes, the prompt, the labels, and the hashes of the files beside it. A seal shows if the card
itself is changed later.
"""

from pathlib import Path
from typing import Any

from loratory.errors import UserError
from loratory.models.identity import deciding_names
from loratory.models.untrusted import read_json
from loratory.storage import CARD, changed_files, seal_is_intact, sealed, write_json

OPTIONAL_TEXT, OPTIONAL_OBJECT = (str, type(None)), (dict, type(None))
CARD_KINDS: dict[str, Any] = {
    "base": dict, "prompt": dict, "labels": list, "answer": str, "adapter": str, "task": OPTIONAL_TEXT,
    "candidates": OPTIONAL_TEXT, "longest_answer": (int, type(None)), "choose": OPTIONAL_OBJECT,
    "versions": OPTIONAL_OBJECT, "files": OPTIONAL_OBJECT,
}  # fmt: skip
BASE_KINDS: dict[str, Any] = {"name": str, "revision": OPTIONAL_TEXT, "weights_sha256": str, "files": OPTIONAL_OBJECT}


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Writes the card of a saved adapter or model, sealed, atomically."""
    write_json(folder / CARD, sealed(card))


def read_card(folder: Path, force: bool = False) -> dict[str, Any]:
    """The card of a saved adapter or model.

    Raises UserError if Loratory did not write it, if it is damaged, or (unless ``force``) if the card or a file that it
    lists has been changed since.
    """
    if not (folder / CARD).exists():
        raise UserError("Not a Loratory adapter", str(folder), expected=f"a folder with a {CARD}")
    card = read_json(folder / CARD)
    for part, kinds in (("", CARD_KINDS), ("base", BASE_KINDS)):
        values = card[part] if part else card
        for key, kind in kinds.items():
            if not isinstance(values.get(key), kind):
                expected = f"{part + '.' if part else ''}{key} of another type"
                raise UserError(
                    "The adapter's card is damaged", str(folder / CARD), expected, repr(values.get(key))[:100]
                )
    if (changed := _changed(folder, card)) and not force:
        fix = "restore the folder from a copy; in a run, the command that started it makes them again; or add --force"
        found = ", ".join(changed[:3])
        raise UserError("Files of the adapter have changed since they were written", str(folder), found=found, fix=fix)
    return card


def changed_model_files(folder: Path) -> list[str]:
    """The files of a saved adapter or model that are missing or changed; the card itself if it cannot be used."""
    try:
        return _changed(folder, read_card(folder, force=True))
    except UserError:
        return [CARD]


def _changed(folder: Path, card: dict[str, Any]) -> list[str]:
    files = card.get("files") or {}
    # A whole model is loaded from its folder, where a file that was added could decide too.
    added = set(deciding_names(folder)) - set(files) if files and card["adapter"] == "full" else set()
    return ([] if seal_is_intact(card) else [CARD]) + changed_files(folder, files) + sorted(added)
