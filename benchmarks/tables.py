"""Makes the tables and the chart of docs/performance.md from the recorded results.

    python benchmarks/tables.py [--results FOLDER] [--picture FILE.svg]

Prints Markdown. Needs matplotlib, which is not a dependency of Loratory: pip install matplotlib.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from common import FOLDER, RESULTS
from matplotlib import pyplot as plt

Result = dict[str, Any]

DATA_WORDS = {"shared": "shared prompt", "unshared": "nothing shared", "long-answers": "long answers"}
ADAPTER_WORDS = {"lora": "LoRA", "full": "full fine-tuning"}
GREY, BLUE = "#77808b", "#3b82d6"  # readable on white and on black


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=FOLDER.parent / "docs" / "img" / "throughput.svg")
    args = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.results.glob("*.json"))]
    tables = [make([r for r in results if r.get("benchmark") == kind]) for kind, make in TABLES.items()]
    print("\n\n".join(table for table in tables if table))
    draw([r for r in results if r.get("benchmark") in WORK], args.picture)


# ---- tables ----------------------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, or an empty text if there are no rows."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def side_by_side(results: Sequence[Result]) -> str:
    header = (
        "workload",
        "Loratory, examples/s",
        "TRL, examples/s (best batch)",
        "speedup",
        "memory relative to TRL",
        "roofline",
    )
    return markdown(
        header,
        [
            (
                side_by_side_work(r),
                number(r["examples_per_second"]["loratory"]),
                f"{number(r['examples_per_second']['trl'])} ({r['trl_batch_size']})",
                times(r["ratio"]),
                percent(r["memory_ratio"]),
                percent(r["roofline"]),
            )
            for r in results
        ],
    )


def whole_command(results: Sequence[Result]) -> str:
    header = (
        "workload",
        "Loratory, s per example",
        "TRL, s per example (best batch)",
        "speedup",
        "memory relative to TRL",
    )
    return markdown(
        header,
        [
            (
                whole_command_work(r),
                number(r["seconds_per_example"]["loratory"]),
                f"{number(r['seconds_per_example']['trl'])} ({r['trl_batch_size']})",
                times(r["ratio"]),
                percent(r["memory_ratio"]),
            )
            for r in results
        ],
    )


def scoring(results: Sequence[Result]) -> str:
    header = (
        "workload",
        "Loratory (scoring), papers/s",
        "Transformers (generation), papers/s (best batch)",
        "speedup",
        "memory relative to Transformers",
    )
    return markdown(
        header,
        [
            (
                f"{r['shape']}, {r['papers']} papers, {r['labels']} labels",
                number(r["papers_per_second"]["loratory"]),
                f"{number(r['papers_per_second']['transformers'])} ({r['batch_size']})",
                times(r["ratio"]),
                percent(r["memory_ratio"]),
            )
            for r in results
        ],
    )


def scaling(results: Sequence[Result]) -> str:
    return markdown(
        ("workload", "examples", "s per example", "peak memory, GiB"),
        [
            (
                r["shape"],
                f"{size['examples']:,}",
                number(size["seconds_per_example"]),
                number(size["peak_memory_bytes"] / 2**30),
            )
            for r in results
            for size in r["sizes"]
        ],
    )


TABLES: dict[str, Callable[[Sequence[Result]], str]] = {
    "side-by-side": side_by_side,
    "whole-command": whole_command,
    "scoring": scoring,
    "scaling": scaling,
}


def side_by_side_work(result: Result) -> str:
    return f"{result['shape']}, {DATA_WORDS[result['data']]}, {ADAPTER_WORDS[result['adapter']]}"


def whole_command_work(result: Result) -> str:
    return f"{result['shape']}, real papers, the whole command"


WORK: dict[str, Callable[[Result], str]] = {"side-by-side": side_by_side_work, "whole-command": whole_command_work}


def number(value: float) -> str:
    """Three significant digits, which is already more than the noise of timings justifies."""
    return f"{value:#.3g}".rstrip(".")


def times(value: float) -> str:
    return f"{value:.1f} ×"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


# ---- chart -----------------------------------------------------------------------------------------------------------


def draw(results: Sequence[Result], path: Path) -> None:
    """A bar chart of Loratory's speed relative to TRL, one bar per comparison; transparent, to suit any page."""
    if not results:
        return
    ordered = sorted(results, key=lambda r: r["ratio"])
    names = [WORK[r["benchmark"]](r) for r in ordered]
    settings = {
        "svg.fonttype": "none",  # keeps text as text: small, and readable by machines
        "svg.hashsalt": "loratory",  # makes the file reproducible
        "font.family": "sans-serif",
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
    }
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(figsize=(8, 0.9 + 0.42 * len(ordered)), layout="constrained")
        bars = axes.barh(names, [r["ratio"] for r in ordered], color=BLUE, height=0.62)
        axes.bar_label(bars, [times(r["ratio"]) for r in ordered], padding=4)
        axes.axvline(1, color=GREY, linewidth=1.2, linestyle="--", zorder=0)
        axes.set_xlabel("examples per second, as a multiple of TRL's (dashed)")
        axes.set_xlim(0, 1.12 * max(1, ordered[-1]["speedup"]))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
