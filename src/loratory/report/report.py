"""Builds the report of a run from the files in its run directory."""

from pathlib import Path

from loratory.report.advice import remarks
from loratory.report.reading import Report, Run, events_named, not_measured, prompts_tried, read_run, task_of
from loratory.report.results import (
    choose_before_and_after,
    compare_with_after,
    delivered,
    describe_folds,
    describe_forgetting,
    describe_seeds,
    describe_system,
    needed_examples,
)
from loratory.report.verdict import name_delivered, overlooked_prompting, write_verdict
from loratory.settings import TUNED

SEARCH = "prompts"  # a stage of runs that search for a prompt
STAGES = ("load", "check", SEARCH, "baselines", "train", "evaluate")


def build_report(run: Path) -> Report:
    """The report of a run directory, as report.schema.json describes it.

    Raises UserError if a file is missing, no system was measured, or the systems have different test examples.
    """
    return describe(read_run(run))


def describe(run: Run) -> Report:
    """The report of a run that has been read."""
    task = task_of(run)
    systems = [describe_system(system, task, run.data["labels"]) for system in run.systems.values()]
    before, after = choose_before_and_after(systems)
    comparisons, seeds, folds = compare_with_after(run, before, after), describe_seeds(run), describe_folds(run)
    tested = f"{run.data['test_examples']:,} " + (f"examples in {folds['count']} folds" if folds else "test examples")
    examples = run.data["test_examples"], needed_examples(run, before, after)
    verdict = write_verdict(task, systems, comparisons, seeds, before, after, tested, examples)
    verdict["delivered"] = delivered(run, after)
    verdict["sentence"] += overlooked_prompting(run, systems, before) + remarks(run, after)
    verdict["sentence"] += name_delivered(task, systems, verdict["delivered"], after)
    missing, tried = not_measured(run), prompts_tried(run)
    if after not in TUNED and any(system["name"] in TUNED for system in missing):
        verdict["sentence"] = f"The tuned model could not be measured. {verdict['sentence']}"
    trained = (events_named(run, "trained") or [{}])[-1]
    stages = [e for e in (*run.events, *run.part_events) if e["event"] == "stage"]
    names = [name for name in STAGES if tried or name != SEARCH]
    seconds = {name: sum(e["seconds"] for e in stages if e["name"] == name) for name in names}
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
        "peak_memory_bytes": max((e["peak_memory_bytes"] for e in events_named(run, "memory")), default=0),
        "train_tokens_per_second": trained.get("tokens_per_second"),
        "data_checks": run.data["checks"],
        "demonstration": bool(run.environment.get("demonstration")),
        "forgetting": describe_forgetting(run),
        **({"not_measured": missing} if missing else {}),
        **({"prompts_tried": tried} if tried else {}),
    }
