"""Compares two runs on the same test examples: results, differences in settings, time and memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Group
from rich.table import Table
from rich.text import Text

from loratory.errors import UserError
from loratory.metrics import duration, p_text, percent, points, points_interval, short, size, spread
from loratory.report.page import KINDS, changed_examples, page_environment
from loratory.report.reading import ALL_SYSTEMS, Report, Run, read_run, task_of
from loratory.report.report import describe
from loratory.report.results import SIGNIFICANT, compare_systems
from loratory.report.terminal import text_table

Comparison = dict[str, Any]
# The location of a run does not affect its results.
IGNORED_KEYS = ("run.out",)
CAUTION = (
    "The test compares these two models on examples like these. It does not account for the variation between "
    "training runs with different seeds."
)


def read_pair(a: Path, b: Path) -> tuple[Run, Run]:
    """Reads two run directories. Raises UserError if one is not a finished run or if their test examples differ."""
    runs = read_run(a), read_run(b)
    _check_same_examples(*runs)
    return runs


def compare_runs(a: Run, b: Run) -> Comparison:
    """The comparison of two runs with the same test examples, ready for JSON.

    ``difference`` compares the "after" systems of both runs (see ``compare_systems``). All differences are b - a.
    """
    reports = describe(a), describe(b)
    sides = [_side(run, report) for run, report in zip((a, b), reports, strict=True)]
    difference = compare_systems(a.systems[sides[0]["system"]], b.systems[sides[1]["system"]], task_of(a))
    better = None
    if difference["p_value"] < SIGNIFICANT:
        better = "b" if difference["difference"] > 0 else "a"
    return {
        "a": sides[0],
        "b": sides[1],
        "test_examples": reports[0]["test_examples"],
        "systems": list(_systems(*reports)),
        "difference": difference,
        "better": better,
        "sentence": _sentence(sides[0], sides[1], difference, better, reports[0]["test_examples"]),
        "settings": _different_settings(a, b),
        "costs": _costs(*reports),
    }


def render_comparison(comparison: Comparison) -> Group:
    """The comparison for the terminal (rich)."""
    sides = (("A", comparison["a"]), ("B", comparison["b"]))
    legend = [Text(f"{letter}: {side['folder']} ({side['system']})") for letter, side in sides]
    systems = text_table(["system"], ["A", "B", "B - A"])
    for s in comparison["systems"]:
        values = ["–" if s[side] is None else percent(s[side]["value"]) for side in ("a", "b")]
        systems.add_row(s["name"], *values, "–" if s["difference"] is None else points(s["difference"]))
    costs = text_table(["time and memory"], ["A", "B"])
    for cost in comparison["costs"]:
        costs.add_row(cost["name"], format_cost(cost["a"], cost["unit"]), format_cost(cost["b"], cost["unit"]))
    settings = Table(box=systems.box, padding=(0, 1), show_edge=False)
    for heading in ("setting", "A", "B"):
        settings.add_column(heading, overflow="fold")
    for row in comparison["settings"]:
        # Text, not str: rich would interpret [square brackets] in a value as markup.
        settings.add_row(*(Text(row[key] or "–") for key in ("key", "a", "b")))
    blocks = [[Text(comparison["sentence"], style="bold"), Text(CAUTION, style="dim")], legend, [systems]]
    blocks += [[settings]] if comparison["settings"] else []
    return Group(*(line for block in [*blocks, [costs]] for line in (*block, "")))


def comparison_page(a: Run, b: Run, comparison: Comparison) -> str:
    """The comparison as a self-contained HTML page with the design of the report page."""
    changed = changed_examples(
        a.systems[comparison["a"]["system"]], b.systems[comparison["b"]["system"]], a.data.get("test_prompts")
    )
    return (
        page_environment()
        .get_template("comparison.html")
        .render(
            comparison=comparison,
            task=task_of(a),
            kind_of={name: kind for kind, names, _ in KINDS for name in names},
            changed=changed,
            caution=CAUTION,
            format_cost=format_cost,
        )
    )


def format_cost(value: float | int | None, unit: str) -> str:
    """A cost as text; ``unit`` is "s" (seconds), "B" (bytes) or empty."""
    if value is None:
        return "–"
    return duration(value) if unit == "s" else size(int(value)) if unit == "B" else f"{value:,.0f}"


# Checking that both runs have the same test examples


def _check_same_examples(a: Run, b: Run) -> None:
    """Raises UserError unless both runs were tested on the same examples in the same order.

    If both runs have the same prompt template, their prompts must be equal. Otherwise their data files and the expected
    answers must be equal.
    """

    def refuse(found: str) -> NoReturn:
        raise UserError(
            "The runs were not tested on the same examples",
            f"{a.folder} and {b.folder}",
            expected="the same test examples in the same order",
            found=found,
            fix="compare runs with the same test file, or with the same training file and the same [train] seed",
        )

    expected = [[line["expected"] for line in next(iter(run.systems.values())).test] for run in (a, b)]
    if len(expected[0]) != len(expected[1]):
        refuse(f"{len(expected[0])} and {len(expected[1])} test examples")
    for number, (one, other) in enumerate(zip(*expected, strict=True), 1):
        if one != other:
            refuse(f"test example {number}: expected answers {one!r} and {other!r}")
    prompts = [run.data.get("test_prompts") or expected[0] for run in (a, b)]
    if None in (a.data.get("test_prompts"), b.data.get("test_prompts")) or prompts[0] == prompts[1]:
        return
    templates = [run.settings.get("prompt", {}).get("user") for run in (a, b)]
    files = [[file["sha256"] or file["path"] for file in run.data["files"]] for run in (a, b)]
    if templates[0] == templates[1] or files[0] != files[1]:
        pairs = zip(*prompts, strict=True)
        number, (one, other) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        refuse(f"test example {number}: prompts {short(one, 80)!r} and {short(other, 80)!r}")


# The parts of a comparison


def _side(run: Run, report: Report) -> dict[str, Any]:
    """The "after" system of one run."""
    name = report["verdict"]["after"]
    system = next(s for s in report["systems"] if s["name"] == name)
    seeds = next((s for s in report["seeds"] or () if s["name"] == name), None)
    return {
        "folder": str(run.folder),
        "system": name,
        **{key: system[key] for key in ("value", "low", "high")},
        "seeds": seeds,
    }


def _systems(a: Report, b: Report) -> Iterator[dict[str, Any]]:
    """Every system measured in either run: its value in both runs, and the difference b - a."""
    measured = [{s["name"]: {key: s[key] for key in ("value", "low", "high")} for s in r["systems"]} for r in (a, b)]
    for name in ALL_SYSTEMS:
        one, other = (part.get(name) for part in measured)
        if one or other:
            difference = other["value"] - one["value"] if one and other else None
            yield {"name": name, "a": one, "b": other, "difference": difference}


def _sentence(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any], better: str | None, total: int) -> str:
    """The conclusion: which run is better, or that the difference is not significant."""
    names = [f"{letter} ({Path(side['folder']).name})" for letter, side in (("A", a), ("B", b))]
    sides = list(zip(names, (a, b), strict=True))
    if better is None:
        sentence = f"No significant difference: {percent(a['value'])} for {names[0]} and {percent(b['value'])} for"
        sentence += f" {names[1]} on {total} test examples, {points(c['difference'])} points"
        sentence += f" (95 % interval {points_interval(c)}, {p_text(c['p_value'])})."
    else:
        (name, best), (other_name, other) = sides if better == "a" else sides[::-1]
        low, high = sorted((1 if better == "b" else -1) * 100 * c[key] for key in ("low", "high"))
        sentence = f"{name} is better: {percent(best['value'])} against {percent(other['value'])} for {other_name}"
        sentence += f" on {total} test examples, {100 * abs(c['difference']):.1f} points more"
        sentence += f" (95 % interval {low:.1f} to {high:.1f}, {p_text(c['p_value'])})."
    for name, side in sides:
        if side["seeds"]:
            sentence += f" Over {len(side['seeds']['values'])} seeds, {name} reaches {spread(side['seeds'])}."
    return sentence


def _different_settings(a: Run, b: Run) -> list[dict[str, Any]]:
    """Keys whose values differ, each with both values as text; None if a run lacks the key."""
    one, other = _settings(a), _settings(b)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return [{"key": key, "a": one.get(key), "b": other.get(key)} for key in keys]


def _settings(run: Run) -> dict[str, str]:
    """Everything that affects the results, flattened: settings, model, versions, machine, hashes of the data files."""
    e = run.environment
    setup = {"model": e["model"], "versions": e["versions"], **{key: e.get(key) for key in ("python", "cpu", "git")}}
    files = {f"data file {i}, SHA-256": file["sha256"] for i, file in enumerate(run.data["files"], 1)}
    flat = dict(_flat(run.settings)) | dict(_flat(setup)) | files
    return {key: str(value) for key, value in flat.items() if value is not None and key not in IGNORED_KEYS}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _costs(a: Report, b: Report) -> list[dict[str, Any]]:
    """Times of the stages, time per answer, peak memory, training speed and trainable parameters of both runs."""

    def seconds_per_answer(report: Report) -> float:
        return next(s for s in report["systems"] if s["name"] == report["verdict"]["after"])["seconds_per_example"]

    rows = [(name, "s", a["seconds"][name] or None, b["seconds"][name] or None) for name in a["seconds"]]
    rows.append(("time per answer", "s", seconds_per_answer(a), seconds_per_answer(b)))
    for name, unit, key in (
        ("peak memory", "B", "peak_memory_bytes"),
        ("training tokens per second", "", "train_tokens_per_second"),
        ("trainable parameters", "", "trainable_parameters"),
    ):
        rows.append((name, unit, a[key] or None, b[key] or None))
    return [dict(zip(("name", "unit", "a", "b"), row, strict=True)) for row in rows]
