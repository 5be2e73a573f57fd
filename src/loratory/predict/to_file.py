"""Answers every row of a data file, in parts that a killed prediction can be resumed from."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from loratory.data import Row, cell_text
from loratory.errors import UserError
from loratory.evaluation import Prediction
from loratory.events import Event, EventCallback
from loratory.predict.tuned import Tuned
from loratory.storage import (
    check_replaceable,
    data_files,
    only_writer_of_file,
    open_output,
    parsed_json,
    sha256_of_text,
)

ROWS_AT_ONCE = 256  # always the same, so that a resumed prediction computes the same batches
JSON_LINES, DELIMITERS = (".jsonl", ""), {".csv": ",", ".tsv": "\t"}


def check_output(out: Path, data: Sequence[Path], run: Path) -> None:
    """Raises UserError if answers cannot be written to ``out``: another format, the data, the data of the run's
    training, or a file of the run."""
    suffix = out.suffix.lower()
    check_replaceable(out, [*data, *data_files(run), *data_files(run.parent)])
    if _is_ordinary(out) and suffix not in (*JSON_LINES, *DELIMITERS):
        expected = "a name that ends in .jsonl, .csv or .tsv"
        raise UserError("Answers cannot be written in this format", str(out), expected=expected, found=suffix)


def predict_to_file(tuned: Tuned, rows: Sequence[Row], out: Path, on_event: EventCallback) -> None:
    """Answers every row and writes the answers to ``out``; see ``check_output`` for what it may be.

    Finished parts are kept beside ``out`` until all rows are answered, so that the same call resumes after a kill. The
    suffix decides the format: JSON lines, or the columns of the data with "answer" and "confidence" after them.
    Devices and pipes are written to directly, as JSON lines.
    """
    if not _is_ordinary(out):
        lines = [answer_line(p) for p in _predictions(tuned, rows, 0, on_event)]
        with open_output(out) as file:
            _write_json_lines(file, lines)
        return
    suffix, out = out.suffix.lower(), Path(os.path.realpath(out))  # a link stays, and its target is written
    part = out.with_name(f"{out.name}.part")
    values = json.dumps([dict(row.values) for row in rows], default=str)
    identity = {"loratory": "part of an output", "model": tuned.identity, "data": sha256_of_text(values)}
    with only_writer_of_file(part):
        lines = _open_part(part, identity, on_event)
        try:
            with part.open("a", encoding="utf-8") as file:
                for prediction in _predictions(tuned, rows, len(lines), on_event):
                    lines.append(answer_line(prediction))
                    file.write(json.dumps(lines[-1], ensure_ascii=False, allow_nan=False) + "\n")
                    if len(lines) % ROWS_AT_ONCE == 0:
                        file.flush()
        except BaseException:
            if len(lines) < ROWS_AT_ONCE:  # there is nothing to resume
                part.unlink()
            raise
        with open_output(out, _temporary(out)) as file:
            delimiter = DELIMITERS.get(suffix)
            _write_json_lines(file, lines) if delimiter is None else _write_table(file, rows, lines, delimiter)
        part.unlink()


def answer_line(prediction: Prediction) -> dict[str, Any]:
    """What is written for a row, as a JSON object."""
    return {"answer": prediction.answer, "probabilities": prediction.probabilities}


def _is_ordinary(out: Path) -> bool:
    return out.is_file() or not out.exists()


def _predictions(tuned: Tuned, rows: Sequence[Row], start: int, on_event: EventCallback) -> Iterator[Prediction]:
    for first in range(start, len(rows), ROWS_AT_ONCE):

        def progress(done: int, _total: int, first: int = first) -> None:
            on_event(Event("progress", "predict", {"done": first + done, "total": len(rows)}))

        yield from tuned.predictions(rows[first : first + ROWS_AT_ONCE], progress)


def _open_part(part: Path, identity: Mapping[str, Any], on_event: EventCallback) -> list[dict[str, Any]]:
    """The answers that an earlier call with the same model and data has left, in whole parts; else starts a new file.

    Raises UserError if the file is not of Loratory.
    """
    text = part.read_text(encoding="utf-8", errors="replace") if part.exists() else None
    header, *answers = [_parsed(line) for line in (text or "").split("\n")]  # the last line is empty or incomplete
    if text is not None and header.get("loratory") != identity["loratory"]:
        raise UserError("This file is in the way", str(part), fix="move it, or choose another --out")
    whole = len(answers[:-1]) // ROWS_AT_ONCE * ROWS_AT_ONCE if header == identity and all(answers[:-1]) else 0
    kept = answers[:whole]
    with open_output(part, _temporary(part)) as file:
        _write_json_lines(file, [dict(identity), *kept])
    if kept:
        on_event(Event("message", f"Resumed after {len(kept)} rows"))
    return kept


def _temporary(path: Path) -> Path:
    """The same name for every call, so that the next one replaces what a killed one has left."""
    return path.with_name(f".{path.name}.loratory-tmp")


def _parsed(line: str) -> dict[str, Any]:
    """The JSON object in a line; empty if there is none."""
    try:
        value = parsed_json(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _write_json_lines(file: IO[str], lines: Sequence[dict[str, Any]]) -> None:
    for line in lines:
        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _write_table(file: IO[str], rows: Sequence[Row], lines: Sequence[dict[str, Any]], delimiter: str) -> None:
    """The columns of the data, then the answer and its probability, if the model gives one."""
    columns = list(dict.fromkeys(str(name) for row in rows for name in row.values))
    added = [name if name not in columns else f"predicted_{name}" for name in ("answer", "confidence")]
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow([*map(cell_text, columns), *added])
    for row, line in zip(rows, lines, strict=True):
        cells = [cell_text(row.value(name)) for name in columns]
        probability = (line["probabilities"] or {}).get(line["answer"])
        writer.writerow([*cells, line["answer"], "" if probability is None else f"{probability:.4f}"])
