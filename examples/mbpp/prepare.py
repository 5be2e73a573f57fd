"""Splits MBPP as its authors do: task ids 601 to 974 for training, 511 to 600 for validation, 11 to 510 for the test.

    python examples/mbpp/prepare.py MBPP.jsonl FOLDER

Some programs of the file end their lines with "\\r\\n"; here, all lines end with "\\n".
"""

import json
import sys
from pathlib import Path

PARTS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511)}
LONGEST = 500
"""Training programs with more characters than this are left out: no answer of a model is cut, so the longest training
program decides how long all answers may be."""


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, out = map(Path, sys.argv[1:])
    problems = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    out.mkdir(parents=True, exist_ok=True)
    for part, ids in PARTS.items():
        rows = [problem | {"code": tidy(problem["code"])} for problem in problems if problem["task_id"] in ids]
        kept = [row for row in rows if part != "train" or len(row["code"]) <= LONGEST]
        (out / f"mbpp-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def tidy(code: str) -> str:
    """A program with line feeds only, and four spaces for a tab."""
    return "\n".join(line.rstrip() for line in code.replace("\r\n", "\n").expandtabs(4).split("\n")).strip()


if __name__ == "__main__":
    main()
