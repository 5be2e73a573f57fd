"""Parse, one library call, print. Bodies import lazily, so that --help does not wait for PyTorch.

Results go to standard output, everything else to standard error.
"""

import dataclasses
import importlib.resources
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from loratory.config import Config, ModelConfig, check_config
from loratory.errors import Interrupted, UserError

if TYPE_CHECKING:
    from loratory.job import Event

WIDE = 400
DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
HELP = """usage: loratory VERB [ARGUMENTS]

Teaches a language model your task on your own machine and proves that it learned it.

  run [TASK.toml]         check, baselines, fine-tune, evaluate, report; nothing given: the built-in model and task
  train TASK.toml         fine-tune only: writes the adapter, measures no baseline
  evaluate RUN            measure all systems of a run again and rewrite its report
  predict RUN DATA        answers for every row of a csv, tsv, json, jsonl or parquet file, as jsonl
  ask "TEXT"              put a question to a model or a run by hand
  show [TASK.toml]        what the model sees, token by token, and which tokens are trained

loratory VERB --help shows a verb's flags. Every key of a task file is a flag: --train.learning-rate 2e-4.
Exit codes: 0 done, 1 failed, 2 the input was wrong, 130 interrupted (and resumable).
"""
Positional = tyro.conf.Positional
Settings = Annotated[Config, tyro.conf.arg(name="")]  # flags are named --section.key


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Check, baselines, fine-tune, evaluate, report. The first argument may be a task file."""

    config: Settings = dataclasses.field(default_factory=Config)
    overwrite: bool = False
    """Replace what the run directory holds."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class EvaluateFlags:
    """Measure all systems of a run again and rewrite its report."""

    run: Positional[Path]
    """The run directory."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class PredictFlags:
    """Answer every row of a file with a tuned model."""

    run: Positional[Path]
    """Run directory or adapter folder."""
    data: Positional[Path]
    """csv, tsv, json, jsonl or parquet with the columns that the prompt shows."""
    out: Path | None = None
    """Where the answers go, one JSON object a line; default: standard output."""
    force: bool = False
    """Also with a base model whose weights differ from those of the training."""


@dataclasses.dataclass(frozen=True)
class AskFlags:
    """Put a question to a model by hand; the answer appears as it is made."""

    text: Positional[str]
    """The user message."""
    run: Path | None = None
    """A run directory or adapter folder; without it the plain model answers."""
    model: str = ModelConfig().name
    """Hub id or folder of the plain model."""
    system: str | None = None
    """System message; a run brings its own."""
    max_new_tokens: int = 200
    """Most tokens of the answer."""
    force: bool = False
    """Also with a base model whose weights differ from those of the training."""
    json: bool = False
    """Print {"answer": ...} when it is complete."""


@dataclasses.dataclass(frozen=True)
class ShowFlags:
    """Show training examples token by token; trained tokens are on green. The first argument may be a task file."""

    config: Settings = dataclasses.field(default_factory=Config)
    count: int = 2
    """How many training examples."""
    padded: bool = False
    """Print input_ids, attention_mask and shifted labels (-100 where nothing is trained)."""
    json: bool = False
    """Print JSON."""


# ---- verbs -----------------------------------------------------------------------------------------------------------


def run(arguments: list[str]) -> None:
    flags = _with_task(RunFlags, arguments, "run")
    from loratory.finetune import finetune

    with terminal() as tell:
        folder = finetune(flags.config, tell, flags.overwrite)
    _print_report(folder, flags.json)


def train(arguments: list[str]) -> None:
    flags = _with_task(RunFlags, arguments, "train")
    from loratory.finetune import train_only

    with terminal() as tell:
        folder = train_only(flags.config, tell, flags.overwrite)
    print(
        json.dumps({"run": str(folder)}) if flags.json else f"Trained: {folder}\nMeasure it: loratory evaluate {folder}"
    )


def evaluate(arguments: list[str]) -> None:
    flags = tyro.cli(EvaluateFlags, args=arguments, prog="loratory evaluate")
    from loratory.finetune import evaluate_run

    with terminal() as tell:
        folder = evaluate_run(flags.run, tell)
    _print_report(folder, flags.json)


def predict(arguments: list[str]) -> None:
    flags = tyro.cli(PredictFlags, args=arguments, prog="loratory predict")
    from loratory.examples import read_rows
    from loratory.predict import load
    from loratory.runs import write_json_lines

    rows = read_rows(str(flags.data))
    with terminal() as tell:
        from loratory.job import Event

        tuned = load(flags.run, force=flags.force)
        found = tuned.predictions(rows, lambda n, of: tell(Event("progress", "predict", {"done": n, "total": of})))
    lines = [{"answer": p.answer, "probabilities": p.probabilities} for p in found]
    if flags.out:
        write_json_lines(flags.out, lines)
        print(f"{len(lines)} answers in {flags.out}", file=sys.stderr)
    else:
        print("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))


def ask(arguments: list[str]) -> None:
    flags = tyro.cli(AskFlags, args=arguments, prog="loratory ask")
    pieces = _answer(flags)
    if flags.json:
        print(json.dumps({"answer": "".join(pieces).strip()}, ensure_ascii=False))
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _answer(flags: AskFlags) -> Iterable[str]:
    from loratory import models
    from loratory.config import PromptConfig
    from loratory.predict import ask, load
    from loratory.render import make_renderer
    from loratory.world import resolve_world

    if flags.run is not None:
        return load(flags.run, force=flags.force).ask(flags.text, flags.system, flags.max_new_tokens)
    base = models.load_model(ModelConfig(flags.model), resolve_world("auto", "auto", 0))
    renderer = make_renderer(base.text.tokenizer, base.text.stop_ids, PromptConfig())
    return ask(base.model, renderer, flags.text, flags.system, flags.max_new_tokens)


def show(arguments: list[str]) -> None:
    flags = _with_task(ShowFlags, arguments, "show")
    from rich.console import Console

    from loratory import models, render
    from loratory import show as shown
    from loratory.examples import load_split
    from loratory.generate import pad_id_of

    split = load_split(flags.config.data, flags.config.prompt, flags.config.train.seed)
    text = models.load_tokenizer(flags.config.model)
    renderer = render.make_renderer(text.tokenizer, text.stop_ids, split.prompt)
    if split.prompt.system is not None:
        render.check_system_is_shown(renderer)
    sequences = [s for e in split.train[: flags.count] for s in render.tokenize(e, renderer)]
    if flags.padded:
        arrays = shown.padded(sequences, pad_id_of(renderer))
        print(json.dumps(arrays) if flags.json else "\n".join(f"{k}\n{_matrix(v)}" for k, v in arrays.items()))
    elif flags.json:
        rows = [{"source": s.source, "tokens": shown.as_rows(s, renderer)} for s in sequences]
        print(json.dumps(rows, ensure_ascii=False))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for sequence in sequences:
            trained = int((sequence.loss_weights > 0).sum())
            console.print(f"{sequence.source}: {len(sequence.token_ids)} tokens, {trained} trained", style="bold")
            console.print(shown.coloured(sequence), end="\n\n")


def _matrix(rows: list[list[int]]) -> str:
    return "\n".join("  " + " ".join(map(str, row)) for row in rows)


VERBS: dict[str, Callable[[list[str]], None]] = {
    "run": run,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "ask": ask,
    "show": show,
}


# ---- shared ----------------------------------------------------------------------------------------------------------


def builtin_task() -> Path:
    """The task file that comes with the package."""
    return Path(str(importlib.resources.files("loratory") / "builtin" / "task.toml"))


def _with_task(kind: Any, arguments: list[str], verb: str) -> Any:
    """Flags over the settings of the task file that the first argument names (default: the built-in one)."""
    named = bool(arguments) and not arguments[0].startswith("-")
    config = Config.load(arguments[0] if named else builtin_task())
    flags = tyro.cli(
        kind,
        args=arguments[1:] if named else arguments,
        default=kind(config=config),
        prog=f"loratory {verb}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    flags = dataclasses.replace(flags, config=_with_truth_values(flags.config))
    check_config(flags.config, "command line")
    return flags


def _with_truth_values(config: Config) -> Config:
    """``enable_thinking false`` means what it says: flags of template arguments arrive as text."""
    words = {"true": True, "false": False}
    arguments = {k: words.get(v, v) if isinstance(v, str) else v for k, v in config.prompt.template_kwargs.items()}
    return dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, template_kwargs=arguments))


def _print_report(folder: Path, as_json: bool) -> None:
    report = json.loads((folder / "report.json").read_text())
    if as_json:
        print(json.dumps(report))
        return
    from rich.console import Console

    from loratory.report import render_table

    width = None if sys.stdout.isatty() else WIDE  # a program that reads the verdict finds it on one line
    Console(width=width).print(render_table(report))
    print(f"Report: {folder / 'report.html'}")


@contextmanager
def terminal() -> Iterator["Callable[[Event], None]"]:
    """Shows events on standard error: a live bar in a terminal, a line every few seconds elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("  {task.description:<16}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    tasks: dict[str, Any] = {}
    last_line = [time.monotonic()]

    def advance(name: str, done: int, total: int, note: str) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total, note="")
        bars.update(tasks[name], completed=done, total=total, note=note)
        if not console.is_terminal and (done == total or time.monotonic() - last_line[0] > 10):
            last_line[0] = time.monotonic()
            console.print(f"  {name} {done}/{total} {note}", soft_wrap=True)

    def tell(event: "Event") -> None:
        v = event.values
        if event.kind == "stage":
            console.print(f"[bold]{event.text}[/bold]")
        elif event.kind == "say":
            console.print(f"  {event.text}", soft_wrap=True, markup=False)
        elif event.kind == "progress":
            advance(event.text, v["done"], v["total"], "")
        elif event.kind == "step":
            left = (v["steps"] - v["step"]) * v["seconds"]
            note = f"loss {v['loss']:.3f}, {v['tokens'] / v['seconds']:.0f} tokens/s, about {left:.0f} s left"
            advance(f"train {event.text}", v["step"], v["steps"], note)
        elif event.kind == "system":
            for name in [n for n in tasks if n == event.text]:
                bars.remove_task(tasks.pop(name))
            console.print(f"  {event.text}: {v['accuracy']:.1%} of the test examples ({v['seconds']:.1f} s)")

    with bars:
        yield tell


def _quiet_libraries() -> None:
    """The libraries' own bars and hints would tear up the display."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)


def main(arguments: list[str]) -> int:
    """Runs one verb; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("loratory"))
        return DONE
    if arguments[0] not in VERBS:
        print(f"loratory has no verb {arguments[0]!r}; it has {', '.join(VERBS)}", file=sys.stderr)
        return WRONG_INPUT
    _quiet_libraries()
    try:
        VERBS[arguments[0]](arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("Interrupted. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    except Interrupted as error:
        print(f"{error}. The same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            print(f"error: Out of memory\n  fix: a smaller --train.token-budget ({error})", file=sys.stderr)
            return FAILED
        raise
    return DONE


def entry_point() -> None:
    """The console command."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    entry_point()
