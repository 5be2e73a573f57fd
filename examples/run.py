"""Runs every example on the built-in model with a small budget: ``python examples/run.py [--full]``.

An example whose data is not there is passed over, and said to be. ``--full``: with the budget of its own task file.
"""

import json
import subprocess
import sys
from pathlib import Path

from loratory.config import Config

EXAMPLES = Path(__file__).parent
ROOT = EXAMPLES.parent
LORATORY = Path(sys.executable).parent / "loratory"
SMALL = ["--data.limit-train", "48", "--data.limit-validation", "16", "--data.limit-test", "24", "--train.epochs", "1"]
PAPERS = ROOT / "src" / "loratory" / "builtin"


def main() -> None:
    for part in ("train", "test"):
        prepare = EXAMPLES / "title-choice" / "prepare.py"
        out = ROOT / "runs" / "data" / f"title-choice-{part}.jsonl"
        subprocess.run([sys.executable, prepare, PAPERS / f"papers-{part}.jsonl", out], check=True)
    budget = [] if "--full" in sys.argv else SMALL
    for task in sorted(EXAMPLES.glob("*/task.toml")):
        name = task.parent.name
        missing = [path for path in Config.load(task).data.train if not Path(path).exists()]
        if missing:
            print(f"{name}: passed over, there is no {missing[0]}")
            continue
        out = ROOT / "runs" / "examples" / name
        subprocess.run([LORATORY, "run", task, "--run.out", out, "--overwrite", "--yes", *budget], check=True)
        print(f"{name}: {json.loads((out / 'report.json').read_text())['verdict']['sentence']}", flush=True)
    for script in sorted(EXAMPLES.glob("*/run.py")):
        small = [] if "--full" in sys.argv else ["--small"]
        found = subprocess.run([sys.executable, script, *small], check=True, stdout=subprocess.PIPE, text=True)
        print(f"{script.parent.name}: {found.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
