"""A run directory becomes report.json, report.html and a table for the terminal. Nothing is computed but statistics."""

import functools
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from loratory.config import PROMPTING, TUNED, TrainConfig
from loratory.errors import UserError
from loratory.metrics import classification as metrics
from loratory.metrics import significance
from loratory.metrics.tasks import TASKS, Task, parsed
from loratory.report import charts
from loratory.report.charts import duration, p_number, p_text, percent, points
from loratory.storage.run_directory import read_metrics, write_text

REFERENCES = ("linear", "embed", "copy")
ALL_SYSTEMS = (*PROMPTING, *REFERENCES, *TUNED)
# Kind, its systems, and what they are; then what each does.
KINDS = (
    ("prompting", PROMPTING, "The model as it came, prompted"),
    ("reference", REFERENCES, "Without a language model's answers, as a yardstick"),
    ("tuned", TUNED, "The tuned model"),
)
MEANINGS = {
    "prompt": "answers freely", "prompt-choose": "chooses by probability",
    "few-shot": "solved examples in the prompt", "few-shot-choose": "solved examples, then choosing",
    "linear": "on the words", "embed": "on the untouched model's states", "copy": "copies from the text",
    "tuned": "answers freely", "tuned-choose": "chooses by probability",
}  # fmt: skip
RULES = {
    "sum": "the most probable label",
    "mean": "the label that is most probable a token, which does not favour short ones",
    "prior": "the label whose probability is raised most over its mean on other prompts",
}
# The simplest systems, as a sentence names them: reaching a value, and owning it.
RULES_OF_THUMB = {"linear": ("a linear model", "a linear model's"), "copy": ("copying from the text", "copying's")}
DEMONSTRATION = (
    "This is the small demonstration model that comes with Loratory, too weak for real work. "
    "A real model is given with --model.name."
)
# Measures whose names are more than words joined by "_".
MEASURES = {"micro_f1": "Micro-F1", "macro_f1": "Macro-F1", "mrr": "MRR", "chrf": "chrF", "rougeL": "ROUGE-L"}
STAGES = ("load", "check", "baselines", "train", "evaluate")
SIGNIFICANT = 0.05
# A rise of the loss, in nats a token, below which so much was forgotten: 0.1 is a tenth more perplexity.
FORGOTTEN = ((0.02, "nothing"), (0.1, "little"), (0.5, "something"), (float("inf"), "much"))
EXAMPLES_SHOWN = 8
LABEL_ROWS_SHOWN = 200
LIKELIEST_SHOWN = 3
RENDERED_SHOWN = 2
TOKENS_SHOWN = 800

Report = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One system: what was noted about it, and its predictions (lines of the contract); validation may be empty."""

    name: str
    facts: dict[str, Any]
    test: list[dict[str, Any]]
    validation: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """What a run directory says, as read from its files."""

    folder: Path
    config: str
    """The text of config.toml."""
    settings: dict[str, Any]
    """What it says."""
    environment: dict[str, Any]
    data: dict[str, Any]
    events: list[dict[str, Any]]
    systems: dict[str, Measured]
    seeds: dict[int, dict[str, Measured]]
    """The tuned systems once more, trained with each further seed."""
    folds: list[dict[str, Measured]]
    """The systems on each fold of a cross-validation."""
    part_events: list[dict[str, Any]]
    """The log of the further seeds and of the folds."""


def build_report(run: Path) -> Report:
    """The report of a run directory, as report.schema.json describes it.

    Raises UserError if the folder lacks its files, holds no measured system, or systems of different test examples.
    """
    return describe(read_run(run))


def write_report(run: Path) -> Report:
    """Writes report.json and report.html into the run directory, each whole or not at all; returns the report.

    Raises UserError like ``build_report``.
    """
    found = read_run(run)
    report = describe(found)
    # report.json comes last: where it is, the run is finished.
    write_text(run / "report.html", _page(found, report))
    write_text(run / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return report


def render_table(report: Report) -> Group:
    """The report for a terminal (rich), at most 80 columns wide but for notes: the verdict, systems, comparisons."""
    task = TASKS[report["task"]]
    second, key = task.second
    systems = text_table(["system"], [task.metric_text, "95 % interval", "validation", second, "time each"])
    chosen = {report["verdict"]["before"], report["verdict"]["after"]}
    for s in report["systems"]:
        validation = "–" if s["validation_value"] is None else percent(s["validation_value"])
        beside = f"{s['metrics'][key]:.3f}" if key in s["metrics"] else "–"
        row = (s["name"], percent(s["value"]), charts.interval(s), validation, beside)
        systems.add_row(*row, duration(s["seconds_per_example"]), style="bold" if s["name"] in chosen else "")
    notes = [f"{s['name']}: {s['note']}" for s in report["systems"] if s["note"]]
    notes += [f"{s['name']} over {len(s['values'])} seeds: {charts.spread(s)}" for s in report["seeds"] or ()]
    if report["folds"]:
        values = " ".join(
            f"{100 * value:.1f}" for value in report["folds"]["values"].get(report["verdict"]["after"], ())
        )
        notes.append(f"{report['verdict']['after']} in each fold: {values}")
    if report["forgetting"]:
        notes.append(report["forgetting"]["sentence"])
    compared = text_table(["from", "to"], ["points", "95 % interval", "p (Holm)"])
    for c in report["comparisons"]:
        row = (c["a"], c["b"], points(c["difference"]), charts.points_interval(c), p_number(c["p_value"]))
        compared.add_row(*row)
    # Text, not str: rich would read [square brackets] in a note as its markup.
    blocks = [[Text(DEMONSTRATION, style="yellow")]] if report["demonstration"] else []
    blocks += [[Text(report["verdict"]["sentence"], style="bold")], [systems, *(Text(n, style="dim") for n in notes)]]
    blocks += [[compared]] if report["comparisons"] else []
    return Group(*(line for block in blocks for line in (*block, "")))


def text_table(words: list[str], numbers: list[str]) -> Table:
    """An empty table for the terminal, with headings of columns of words and of numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading in words + numbers:
        table.add_column(heading, justify="right" if heading in numbers else "left", no_wrap=True)
    return table


# Reading


def read_run(folder: Path) -> Run:
    """Reads a run directory. Raises UserError like ``build_report``."""
    systems = _read_systems(folder)
    if not systems:
        fix = "let the run finish: repeat the command that started it"
        raise UserError("No system was measured in this run", str(folder), expected="systems/<name>.json", fix=fix)
    seed_folders = sorted(folder.glob("seeds/*/"), key=lambda path: int(path.name))
    seeds = {int(path.name): _read_systems(path) for path in seed_folders}
    expected = [
        [line["expected"] for line in system.test] for part in (systems, *seeds.values()) for system in part.values()
    ]
    if not expected[0] or any(answers != expected[0] for answers in expected):
        raise UserError("The systems were not measured on the same test examples", str(folder / "predictions"))
    config, data = _read_text(folder / "config.toml"), json.loads(_read_text(folder / "data.json"))
    fold_folders = [folder / "folds" / str(k + 1) for k in range(data.get("folds") or 0)]
    return Run(
        folder=folder,
        config=config,
        settings=tomllib.loads(config),
        environment=json.loads(_read_text(folder / "environment.json")),
        data=data,
        events=read_metrics(folder),
        systems=systems,
        seeds=seeds,
        folds=[_read_systems(path) for path in fold_folders],
        part_events=[event for path in (*seed_folders, *fold_folders) for event in read_metrics(path)],
    )


def _read_systems(folder: Path) -> dict[str, Measured]:
    """The systems measured in a run, or in one seed or fold of it; none if there is no such folder."""
    return {name: _read_system(folder, name) for name in ALL_SYSTEMS if (folder / "systems" / f"{name}.json").exists()}


def _read_system(folder: Path, name: str) -> Measured:
    validation = folder / "predictions" / "validation" / f"{name}.jsonl"
    return Measured(
        name=name,
        facts=json.loads(_read_text(folder / "systems" / f"{name}.json")),
        test=_read_lines(folder / "predictions" / f"{name}.jsonl"),
        validation=_read_lines(validation) if validation.exists() else [],
    )


def _read_text(path: Path) -> str:
    if not path.exists():
        raise UserError("A file of the run is missing", str(path), fix="let the run finish, or start it anew")
    return path.read_text(encoding="utf-8")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): JSON may hold U+2028 and its like unescaped inside a string.
    return [json.loads(line) for line in _read_text(path).split("\n") if line]


def _named(run: Run, event: str) -> list[dict[str, Any]]:
    return [e for e in run.events if e["event"] == event]


# The report


def describe(run: Run) -> Report:
    """The report of a run that was read."""
    task = task_of(run)
    systems = [_describe_system(system, task, run.data["labels"]) for system in run.systems.values()]
    before, after = _choose(systems)
    comparisons, seeds, folds = _compare(run, before, after), _over_seeds(run), _over_folds(run)
    tested = f"{run.data['test_examples']:,} " + (f"examples in {folds['count']} folds" if folds else "test examples")
    verdict = _verdict(task, systems, comparisons, seeds, before, after, tested)
    verdict["sentence"] += _passed_over(run, systems, before)
    trained = (_named(run, "trained") or [{}])[-1]
    stages = [e for e in (*run.events, *run.part_events) if e["event"] == "stage"]
    seconds = {name: sum(e["seconds"] for e in stages if e["name"] == name) for name in STAGES}
    return {
        "task": run.data["task"],
        "model": run.environment["model"],
        "metric": task.metric,
        "train_examples": run.data["train_examples"],
        "validation_examples": run.data["validation_examples"],
        "test_examples": run.data["test_examples"],
        "trainable_parameters": trained.get("trainable_parameters", 0),
        "total_parameters": trained.get("total_parameters", 0),
        "labels": run.data["labels"],
        "systems": systems,
        "seeds": seeds,
        "folds": folds,
        "comparisons": comparisons,
        "verdict": verdict,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_bytes": max((e["peak_memory_bytes"] for e in _named(run, "memory")), default=0),
        "train_tokens_per_second": trained.get("tokens_per_second"),
        "data_checks": run.data["checks"],
        "demonstration": bool(run.environment.get("demonstration")),
        "forgetting": _forgetting(run),
    }


def task_of(run: Run) -> Task:
    return TASKS[run.data["task"]]


def _forgetting(run: Run) -> dict[str, Any] | None:
    """Loss (nats a token) and perplexity on text that the task does not cover, before and after; None if unknown."""
    found = {e["when"]: e for e in _named(run, "retained")}
    if set(found) != {"before", "after"}:
        return None
    before, after = found["before"]["loss"], found["after"]["loss"]
    much = next(words for rise, words in FORGOTTEN if after - before < rise)
    sentence = f"On {found['after']['texts']} texts that the task does not cover, perplexity went from"
    sentence += f" {np.exp(before):.1f} to {np.exp(after):.1f}: {much} was forgotten."
    return {"before": before, "after": after, "texts": found["after"]["texts"], "sentence": sentence}


def _over_seeds(run: Run) -> list[dict[str, Any]] | None:
    """The tuned systems with each seed, the run's own first; None where there was one seed."""
    own, found = run.settings.get("train", {}).get("seed", TrainConfig().seed), []
    for name in TUNED:
        series = {seed: part[name] for seed, part in run.seeds.items() if name in part}
        if series and name in run.systems:
            values = [_value(system.test) for system in (run.systems[name], *series.values())]
            statistics = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}
            found.append({"name": name, "seeds": [own, *series], "values": values, **statistics})
    return found or None


def _over_folds(run: Run) -> dict[str, Any] | None:
    """Every system on each fold; None where nothing was cross-validated."""
    if not run.data.get("folds"):
        return None
    values = {name: [_value(fold[name].test) for fold in run.folds if name in fold] for name in run.systems}
    return {"count": run.data["folds"], "values": values}


def _parsed(system: Measured, labels: Sequence[str]) -> list[str | None]:
    return [parsed(line["answer"], labels) for line in system.test]


def _worth(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    """What each answer is worth, from 0 to 1."""
    return np.array([line.get("worth", line["correct"]) for line in lines], dtype=np.float64)


def _value(lines: Sequence[dict[str, Any]]) -> float:
    return float(_worth(lines).mean())


def _describe_system(system: Measured, task: Task, labels: Sequence[str]) -> dict[str, Any]:
    worth = _worth(system.test)
    if task.counts:
        low, high = significance.wilson_interval(int(worth.sum()), len(worth))
    else:
        low, high = significance.bootstrap_interval(np.mean, [worth])
    expected = [line["expected"] for line in system.test]
    return {
        "name": system.name,
        "value": float(worth.mean()),
        "low": low,
        "high": high,
        "validation_value": _value(system.validation) if system.validation else None,
        "metrics": task.others(system.test, labels),
        "per_label": metrics.per_label(expected, _parsed(system, labels), labels) if labels and task.counts else None,
        "note": system.facts["note"],
        "rule": system.facts["rule"],
        "seconds": system.facts["seconds"],
        "seconds_per_example": system.facts["seconds_per_example"],
    }


def _choose(systems: list[dict[str, Any]]) -> tuple[str, str]:
    """Names of "before" and "after": the best on validation of either kind; on ties the one that scores labels.

    A kind that was not measured takes the other's name; the first system stands for both if neither was.
    """

    def best(kind: tuple[str, ...]) -> str | None:
        scores = {s["name"]: -1.0 if s["validation_value"] is None else s["validation_value"] for s in systems}
        # The one that scores labels gives probabilities too.
        return max((n for n in scores if n in kind), key=lambda n: (scores[n], n.endswith("choose")), default=None)

    before, after = best(PROMPTING), best(TUNED)
    return before or after or systems[0]["name"], after or before or systems[0]["name"]


def _compare(run: Run, before: str, after: str) -> list[dict[str, Any]]:
    """What "after" is held against, on the same test examples; nothing if nothing was tuned."""
    if after not in TUNED:
        return []
    others = [name for name in (before, *REFERENCES) if name != after and name in run.systems]
    pairs = [paired(run.systems[name], run.systems[after], task_of(run)) for name in others]
    adjusted = significance.holm([pair["p_value"] for pair in pairs])
    return [
        {"a": name, "b": after, **pair, "p_value": p} for name, pair, p in zip(others, pairs, adjusted, strict=True)
    ]


def paired(a: Measured, b: Measured, task: Task) -> dict[str, Any]:
    """What two systems differ by on the same test examples: ``difference`` is b - a; the p-value is not adjusted.

    ``only_a`` and ``only_b``: how many answers are worth more with a, and with b.
    """
    differences = _worth(b.test) - _worth(a.test)
    only_a, only_b = int((differences < 0).sum()), int((differences > 0).sum())
    if task.counts:
        low, high = significance.paired_difference_interval(only_a, only_b, len(differences))
        p_value = significance.mcnemar_exact(only_a, only_b)
    else:
        low, high, p_value = significance.paired_bootstrap(differences)
    return {
        "only_a": only_a, "only_b": only_b, "difference": float(differences.mean()), "low": low, "high": high,
        "p_value": p_value,
    }  # fmt: skip


# The verdict


def _verdict(
    task: Task,
    systems: list[dict],
    comparisons: list[dict],
    seeds: list[dict] | None,
    before: str,
    after: str,
    tested: str,
) -> dict[str, Any]:
    """The verdict of the contract. ``tested``: the test examples in words, as in "200 test examples"."""
    by_name = {s["name"]: s for s in systems}
    by_other = {c["a"]: c for c in comparisons}
    prompting, linear = by_other.get(before), by_other.get("linear")
    helped = prompting is not None and _is_above(prompting)
    if after not in TUNED:
        best = max(systems, key=lambda s: s["value"])
        sentence = f"Nothing was tuned yet: {best['name']} is the best so far, {task.names(best)} on {tested}"
    elif prompting is None:
        sentence = "No baseline was measured, so there is no before to compare with: the tuned model has"
        sentence += f" {task.names(by_name[after])} on {tested}"
    else:
        sentence = _against_prompting(prompting, by_name, tested, task)
    rule = "linear" if linear else "copy"
    sentence += _against_rule(by_other[rule], by_name[rule], helped) + "." if rule in by_other else "."
    for series in seeds or ():
        if series["name"] == after:
            sentence += f" Over {len(series['values'])} seeds, {after} reaches {charts.spread(series)}."
    return {
        "before": before,
        "after": after,
        "helped": helped,
        "beats_linear": None if linear is None else _is_above(linear),
        "sentence": sentence,
    }


def _passed_over(run: Run, systems: list[dict[str, Any]], before: str) -> str:
    """A sentence where another prompting is measurably above the one that was chosen, so that few validation examples
    do not flatter the tuned model; else nothing."""
    task = task_of(run)
    others = [s for s in systems if s["name"] in PROMPTING and s["name"] != before] if before in PROMPTING else []
    better = [s for s in others if _is_above(paired(run.systems[before], run.systems[s["name"]], task))]
    if not better:
        return ""
    best = max(better, key=lambda s: s["value"])
    few = f"{run.data['validation_examples']:,} validation examples"
    return f" The best prompting there was {best['name']} with {task.names(best)}, which {few} did not show."


def _is_above(comparison: dict[str, Any]) -> bool:
    return comparison["difference"] > 0 and comparison["p_value"] < SIGNIFICANT


def _against_prompting(c: dict[str, Any], by_name: dict[str, dict], tested: str, task: Task) -> str:
    values = f"{task.names(by_name[c['b']])} against {task.said(by_name[c['a']])} for the best prompting"
    values += f" ({c['a']}) on {tested}"
    if _is_above(c):
        return f"Tuning helped: {values} ({p_text(c['p_value'])})"
    if c["p_value"] < SIGNIFICANT:
        return f"Tuning did not help, it made the answers worse: {values} ({p_text(c['p_value'])})"
    return f"Tuning did not help: {values}, no measurable difference ({p_text(c['p_value'])})"


def _against_rule(c: dict[str, Any], rule: dict[str, Any], helped: bool) -> str:
    """The clause about the simplest system, which anyone should use where tuning is not above it."""
    name, owner = RULES_OF_THUMB[rule["name"]]
    value, p = percent(rule["value"]), p_text(c["p_value"])
    cost = "needs no training"
    if rule["name"] == "linear":
        cost = "trains in seconds" if rule["seconds"] < 60 else f"takes {duration(rule['seconds'])}"
    if _is_above(c):
        return f", {'and' if helped else 'but'} the tuned model is above {owner} {value} ({p})"
    if c["p_value"] < SIGNIFICANT:
        return f", {'but' if helped else 'and'} {name} reaches {value} ({p}) and {cost}"
    return f", {'but' if helped else 'and'} {name} reaches {value} and {cost}: no measurable difference ({p})"


# The page


@functools.cache
def page_environment() -> jinja2.Environment:
    """The templates of the package's pages, which share one look, and the filters they use. All text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    shown = (percent, points, p_number, p_text, duration, charts.interval, charts.points_interval, charts.spread)
    environment.filters |= {f.__name__: f for f in (*shown, charts.short, charts.size, charts.unbroken, measure_name)}
    environment.filters |= {"count": "{:,}".format}
    environment.globals |= {"meanings": MEANINGS, "rules": RULES, "likeliest": likeliest}
    return environment


def _page(run: Run, report: Report) -> str:
    before, after = (run.systems[report["verdict"][role]] for role in ("before", "after"))
    systems = {s["name"]: s for s in report["systems"]}
    trials, single = _trials(run), bool(systems[after.name]["per_label"])
    return (
        page_environment()
        .get_template("report.html")
        .render(
            report=report,
            run=run,
            kinds=[(kind, title, [systems[n] for n in names if n in systems]) for kind, names, title in KINDS],
            before=systems[before.name],
            after=systems[after.name],
            two=before.name != after.name,
            tuned=after.name in TUNED,
            demonstration=DEMONSTRATION,
            task=task_of(run),
            level=_level(systems[after.name], after),
            repeats=report["folds"]["values"]
            if report["folds"]
            else {s["name"]: s["values"] for s in report["seeds"] or ()},
            adapter_exists=(run.folder / "adapter" / "adapter_config.json").exists(),
            trials=trials,
            single=single,
            loss=_loss_chart(run, trials),
            label_rows=_label_rows(systems[before.name], systems[after.name]) if single else [],
            label_rows_shown=LABEL_ROWS_SHOWN,
            changed=changed_examples(before, after, run.data.get("test_prompts")),
            rendered=[(r["source"], _cut_tokens(r["tokens"])) for r in run.data.get("rendered", ())[:RENDERED_SHOWN]],
            estimated=(_named(run, "estimate") or [{"stages": {}}])[-1]["stages"],
            **(_confusion(before, after, run.data["labels"]) if single else {"grids": [], "labels_shown": 0}),
        )
    )


def _level(described: dict[str, Any], system: Measured) -> tuple[str, float] | None:
    """What no thought at all would reach: its name and value; None for free answers."""
    if described["per_label"]:
        most = max(values["support"] for values in described["per_label"].values())
        return "always the most frequent label", most / len(system.test)
    chances = [1 / len(line["probabilities"]) for line in system.test if line["probabilities"]]
    return ("a guess", float(np.mean(chances))) if chances else None


def _trials(run: Run) -> list[dict[str, Any]]:
    """The trials of the log; a trial told twice counts once."""
    return list({e["trial"]: e for e in _named(run, "trial")}.values())


def _loss_chart(run: Run, trials: list[dict[str, Any]]) -> charts.LossChart | None:
    """The curves of the trial that was chosen, or else of the last one.

    A resumed run repeats the steps since its checkpoint: of each step, the last line counts.
    """
    chosen = [e for e in trials if e["chosen"]] or _named(run, "step")[-1:]
    if not chosen:
        return None

    def pairs(event: str) -> charts.Points:
        return sorted({e["step"]: e["loss"] for e in _named(run, event) if e["trial"] == chosen[-1]["trial"]}.items())

    return charts.loss_chart(pairs("step"), pairs("validation"), chosen[-1].get("best_step"))


def _cut_tokens(tokens: list[list[Any]]) -> list[list[Any]]:
    """The tokens, without the middle ones of a very long text: a note, marked by None, says how many they are."""
    left_out = len(tokens) - TOKENS_SHOWN
    if left_out <= 0:
        return tokens
    half = TOKENS_SHOWN // 2
    return [*tokens[:half], [f"{left_out} tokens are not shown", None], *tokens[-half:]]


def _label_rows(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, dict, dict]]:
    """Label, its metrics before and after; the weakest labels after tuning first."""
    rows = [(label, before["per_label"][label], values) for label, values in after["per_label"].items()]
    return sorted(rows, key=lambda row: (row[2]["support"] == 0, row[2]["f1"]))


def _confusion(before: Measured, after: Measured, labels: Sequence[str]) -> dict[str, Any]:
    systems = [before] if before.name == after.name else [before, after]
    counts = [metrics.confusion([line["expected"] for line in s.test], _parsed(s, labels), labels) for s in systems]
    shown = charts.labels_to_show(counts)
    grids = [(s.name, charts.confusion_grid(c, labels, shown)) for s, c in zip(systems, counts, strict=True)]
    return {"grids": grids, "labels_shown": len(shown)}


def changed_examples(a: Measured, b: Measured, prompts: list[str] | None) -> dict[str, dict[str, Any]]:
    """Test examples by which of two systems answers better (only_b, only_a, neither): how many, and the first few.

    Neither: worth the same with both, and not everything. Where answers are not just right or wrong, those that differ
    most come first.
    """
    worth_a, worth_b = _worth(a.test), _worth(b.test)
    gain, groups = worth_b - worth_a, {}
    members = {"only_b": gain > 0, "only_a": gain < 0, "neither": (gain == 0) & (worth_b < 1)}
    for name, chosen in members.items():
        positions = sorted(np.flatnonzero(chosen).tolist(), key=lambda i: -abs(gain[i]))
        examples = [
            {"number": i + 1, "prompt": prompts[i] if prompts else None, "a": a.test[i], "b": b.test[i]}
            for i in positions[:EXAMPLES_SHOWN]
        ]
        groups[name] = {"total": len(positions), "examples": examples}
    return groups


def measure_name(key: str) -> str:
    """What people call a measure."""
    return MEASURES.get(key, key.replace("_", " ").capitalize())


def likeliest(line: dict[str, Any]) -> list[tuple[str, float]]:
    """The most probable labels of a prediction with their probabilities, and always the answer and the right one."""
    probabilities = line["probabilities"] or {}
    ranked = sorted(probabilities, key=lambda label: -probabilities[label])
    wanted = {*ranked[:LIKELIEST_SHOWN], line["answer"], line["expected"]}
    return [(label, probabilities[label]) for label in ranked if label in wanted]
