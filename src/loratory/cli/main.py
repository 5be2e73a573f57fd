"""Parse, one library call, print. Bodies import lazily, so that --help does not wait for PyTorch.

Results go to standard output, everything else to standard error.
"""

import argparse
import contextlib
import dataclasses
import importlib.resources
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from loratory.config import BUILTIN_MASKED, Config, ModelConfig, check_config
from loratory.errors import Interrupted, UserError

if TYPE_CHECKING:
    from loratory.data.examples import Example
    from loratory.data.task_file import Draft
    from loratory.run.job import Event
    from loratory.text.rendering import TokenizedExample
    from loratory.text.template import Renderer

WIDE = 400
INIT_EXAMPLES = 3
COMPUTING = ("run", "train", "evaluate", "predict")
HELP_FLAGS = {"-h", "--help"}
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
HELP = """usage: loratory VERB [ARGUMENTS]

Teaches a language model your task on your own machine and proves that it learned it.

  run [TASK.toml]         check, baselines, fine-tune, evaluate, report; nothing given: the built-in model and task
  run DATA --answer COL   the same for a csv, tsv, json, jsonl or parquet file: guesses and writes the task file
  init DATA --answer COL  guesses the task file only, and shows three examples as the model will see them
  train TASK.toml         fine-tune only: writes the adapter, measures no baseline
  evaluate RUN            measure all systems of a run again and rewrite its report
  predict RUN DATA        answers for every row of a csv, tsv, json, jsonl or parquet file, as jsonl
  ask "TEXT"              put a question to a model or a run by hand
  fill "... [MASK] ..."   what a masked language model puts in the place of each mask, and how sure it is
  chat [RUN]              talk with a model or a run in the terminal; base and tuned side by side
  compare RUN_A RUN_B     two runs on the same test examples: which is better, and what was set differently
  show [TASK.toml]        what the model sees, token by token, and which tokens are trained

loratory VERB --help shows a verb's flags. Every key of a task file is a flag: --train.learning-rate 2e-4.
Exit codes: 0 done, 1 failed, 2 the input was wrong, 130 interrupted (and resumable).
"""
Positional = tyro.conf.Positional
Settings = Annotated[Config, tyro.conf.arg(name="")]  # flags are named --section.key


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Check, baselines, fine-tune, evaluate, report. The first argument may be a task file, or data with --answer."""

    config: Settings = dataclasses.field(default_factory=Config)
    answer: str | None = None
    """The column that holds the answer, where data is given instead of a task file."""
    overwrite: bool = False
    """Replace what the run directory holds."""
    yes: bool = False
    """Start without asking; nothing is asked anyway where nobody sits at a terminal."""
    json: bool = False
    """Print the report as JSON."""


@dataclasses.dataclass(frozen=True)
class TrainFlags(RunFlags):
    """Fine-tune only: write the adapter, measure no baseline. The first argument is as for run."""


@dataclasses.dataclass(frozen=True)
class InitFlags:
    """Guess a task file from data: which columns the prompt shows, what it says, how the data is split."""

    data: Positional[str]
    """csv, tsv, json, jsonl or parquet file, or hub:owner/name."""
    answer: str = ""
    """The column that holds the answer."""
    model: str = ModelConfig().name
    """Hub id or folder of the model."""
    out: Path | None = None
    """The task file; default: named after the data, here."""
    overwrite: bool = False
    """Replace a task file that says something else."""
    json: bool = False
    """Print what was guessed as JSON."""


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
class FillFlags:
    """What a masked language model puts in the place of each mask of a text."""

    text: Positional[str]
    """The text; a mask is written as [MASK], <mask> or {mask}."""
    run: Path | None = None
    """A run directory or adapter folder; without it the plain model answers."""
    model: str = BUILTIN_MASKED
    """Hub id or folder of the plain model."""
    top: int = 5
    """How many tokens to show for each mask."""
    force: bool = False
    """Also with a base model whose weights differ from those of the training."""
    json: bool = False
    """Print tokens and probabilities as JSON."""


@dataclasses.dataclass(frozen=True)
class ChatFlags:
    """Talk with a model in the terminal. /help there lists the commands; lines may also be piped in."""

    run: Positional[Path | None] = None
    """A run directory or adapter folder; without it the plain model answers."""
    model: str = ModelConfig().name
    """Hub id or folder of the plain model."""
    system: str | None = None
    """System message; a run brings its own."""
    max_new_tokens: int = 200
    """Most tokens of an answer."""
    force: bool = False
    """Also with a base model whose weights differ from those of the training."""


@dataclasses.dataclass(frozen=True)
class CompareFlags:
    """Compare two runs on the same test examples."""

    a: Positional[Path]
    """A run directory."""
    b: Positional[Path]
    """Another one; differences are B - A."""
    json: bool = False
    """Print the comparison as JSON."""
    html: Path | None = None
    """Also write it as a page."""


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
    flags, draft = _with_task(RunFlags, arguments, "run")
    from loratory.finetune import finetune

    with terminal() as tell:
        folder = finetune(flags.config, tell, flags.overwrite, _confirm(flags.yes, draft))
    _print_report(folder, flags.json)


def train(arguments: list[str]) -> None:
    flags, draft = _with_task(TrainFlags, arguments, "train")
    from loratory.finetune import train_only

    with terminal() as tell:
        folder = train_only(flags.config, tell, flags.overwrite, _confirm(flags.yes, draft))
    print(
        json.dumps({"run": str(folder)}) if flags.json else f"Trained: {folder}\nMeasure it: loratory evaluate {folder}"
    )


def _confirm(yes: bool, draft: "Draft | None") -> Callable[[], bool]:
    """Asks whether to start, where somebody can answer; a guessed task file is written when it starts."""

    def confirm() -> bool:
        if not yes and sys.stdin.isatty() and sys.stderr.isatty():
            print("Start? [Y/n] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
                return False
        if draft:
            from loratory.storage.run_directory import write_text

            write_text(draft.path, draft.toml)
            print(f"  The task file: {draft.path}", file=sys.stderr)
        return True

    return confirm


def init(arguments: list[str]) -> None:
    flags = tyro.cli(InitFlags, args=arguments, prog="loratory init")
    from loratory.data.splits import draw_few_shot
    from loratory.data.task_file import check_place, draft
    from loratory.storage.run_directory import write_text

    found = draft(flags.data, flags.answer, flags.model, flags.out)
    if not flags.overwrite:
        check_place(found)
    config = Config.parse(found.toml, found.path)
    sequences = _rendered(config, lambda train: draw_few_shot(train, INIT_EXAMPLES, config.train.seed))[0]
    write_text(found.path, found.toml)
    if flags.json:
        values = {"task_file": str(found.path), "shown": found.shown, "left_out": found.left_out, "toml": found.toml}
        print(json.dumps(values, ensure_ascii=False))
        return
    print(found.toml)
    _print_rendered(sequences)
    print(f"Written: {found.path}\nNext: loratory run {found.path.name}")


def evaluate(arguments: list[str]) -> None:
    flags = tyro.cli(EvaluateFlags, args=arguments, prog="loratory evaluate")
    from loratory.finetune import evaluate_run

    with terminal() as tell:
        folder = evaluate_run(flags.run, tell)
    _print_report(folder, flags.json)


def predict(arguments: list[str]) -> None:
    flags = tyro.cli(PredictFlags, args=arguments, prog="loratory predict")
    from loratory.data.rows import read_rows
    from loratory.predict.tuned import load
    from loratory.storage.run_directory import write_json_lines

    rows = read_rows(str(flags.data))
    with terminal() as tell:
        from loratory.run.job import Event

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
    from loratory.predict.tuned import ask, load, load_plain

    if flags.run is not None:
        return load(flags.run, force=flags.force).ask(flags.text, flags.system, flags.max_new_tokens)
    base, renderer = load_plain(flags.model)
    return ask(base.model, renderer, flags.text, flags.system, flags.max_new_tokens)


def fill(arguments: list[str]) -> None:
    flags = tyro.cli(FillFlags, args=arguments, prog="loratory fill")
    if flags.top < 1:
        raise UserError("There is nothing to show", "--top", "1 or more", str(flags.top))
    from loratory.predict.tuned import load, load_plain
    from loratory.tree.fill_mask import complete

    if flags.run is not None:
        tuned = load(flags.run, force=flags.force)
        model, renderer, name = tuned.model, tuned.renderer, str(flags.run)
    else:
        base, renderer = load_plain(flags.model)
        model, name = base.model, flags.model
    if not renderer.masked:
        raise UserError("Only masked language models fill in masks", name, fix="loratory ask")
    masks, text = complete(model, renderer, flags.text, flags.top)
    if flags.json:
        guesses = [[{"token": token, "probability": p} for token, p in own] for own in masks]
        print(json.dumps({"masks": guesses, "text": text}, ensure_ascii=False))
        return
    for own in masks:
        print("  ".join(f"{token.strip() or token!r} {p:.1%}" for token, p in own))
    print(text)


def chat(arguments: list[str]) -> None:
    flags = tyro.cli(ChatFlags, args=arguments, prog="loratory chat")
    if flags.run is not None and flags.model != ModelConfig().name:
        raise UserError("A run brings its own model", "--model", fix="give the run or --model, not both")
    from loratory.predict.chat import converse, open_chat, opening, standard_terminal

    partner, state = open_chat(flags.run, flags.model, flags.system, flags.max_new_tokens, flags.force)
    terminal = standard_terminal()
    terminal.tell(opening(partner, state))
    try:
        converse(partner, state, terminal)
    except KeyboardInterrupt:  # there is nothing to resume
        terminal.tell("")
        raise SystemExit(INTERRUPTED) from None


def compare(arguments: list[str]) -> None:
    flags = tyro.cli(CompareFlags, args=arguments, prog="loratory compare")
    from loratory.report import comparison as compare
    from loratory.storage.run_directory import write_text

    pair = compare.read_pair(flags.a, flags.b)
    found = compare.compare_runs(*pair)
    if flags.html:
        write_text(flags.html, compare.page(*pair, found))
    if flags.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    _print_wide(compare.render_comparison(found))
    if flags.html:
        print(f"Page: {flags.html}")


def show(arguments: list[str]) -> None:
    flags, _ = _with_task(ShowFlags, arguments, "show")
    from loratory.predict import tokens as shown
    from loratory.tree.generation import pad_id_of

    sequences, renderer = _rendered(flags.config, lambda train: train[: flags.count])
    if flags.padded:
        arrays = shown.padded(sequences, pad_id_of(renderer))
        print(json.dumps(arrays) if flags.json else "\n".join(f"{k}\n{_matrix(v)}" for k, v in arrays.items()))
    elif flags.json:
        rows = [{"source": s.source, "tokens": shown.as_rows(s, renderer)} for s in sequences]
        print(json.dumps(rows, ensure_ascii=False))
    else:
        _print_rendered(sequences)


def _rendered(
    config: Config, choose: Callable[[Sequence["Example"]], Sequence["Example"]]
) -> tuple[list["TokenizedExample"], "Renderer"]:
    """Some of the training examples as the model sees them."""
    from loratory.data.splits import load_split
    from loratory.models import loading as models
    from loratory.run.job import check_kind
    from loratory.text import rendering as render
    from loratory.text import template

    split = load_split(config.data, config.prompt, config.train.seed, task=config.task, code=config.code)
    text = models.load_tokenizer(config.model)
    check_kind(config, text, config.model.name)
    renderer = render.with_room_for([*split.train, *split.validation], template.renderer_for(text, split.prompt))
    if split.prompt.system is not None:
        template.check_system_is_shown(renderer)
    return [s for e in choose(split.train) for s in render.tokenize(e, renderer)], renderer


def _print_rendered(sequences: Iterable["TokenizedExample"]) -> None:
    from rich.console import Console

    from loratory.predict.tokens import coloured

    console = Console(highlight=False, soft_wrap=True)
    for sequence in sequences:
        trained = int((sequence.loss_weights > 0).sum())
        console.print(f"{sequence.source}: {len(sequence.token_ids)} tokens, {trained} trained", style="bold")
        console.print(coloured(sequence), end="\n\n")


def _matrix(rows: list[list[int]]) -> str:
    return "\n".join("  " + " ".join(map(str, row)) for row in rows)


VERBS: dict[str, Callable[[list[str]], None]] = {
    "run": run,
    "init": init,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "ask": ask,
    "fill": fill,
    "chat": chat,
    "compare": compare,
    "show": show,
}


# ---- shared ----------------------------------------------------------------------------------------------------------


def builtin_task() -> Path:
    """The task file that comes with the package."""
    return Path(str(importlib.resources.files("loratory") / "builtin" / "task.toml"))


def _with_task(kind: Any, arguments: list[str], verb: str) -> tuple[Any, "Draft | None"]:
    """Flags over the settings of the task file or the data that the first argument names (default: the built-in task).

    With data: also the guessed task, whose file is not written yet.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    rest, draft = arguments[1:] if named else arguments, None
    if named and Path(arguments[0]).suffix.lower() != ".toml" and (_is_data(arguments[0]) or "--answer" in rest):
        from loratory.data.task_file import check_place
        from loratory.data.task_file import draft as guess

        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--answer", default="")
        early.add_argument("--model.name", dest="model", default=ModelConfig().name)
        wanted, rest = early.parse_known_args(rest)
        rest = [*rest, "--model.name", wanted.model]
        draft = guess(arguments[0], wanted.answer, wanted.model)
        check_place(draft)
        config = Config.parse(draft.toml, draft.path)
    else:
        config = Config.load(arguments[0] if named else builtin_task())
    flags = tyro.cli(
        kind,
        args=rest,
        default=kind(config=config),
        prog=f"loratory {verb}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    flags = dataclasses.replace(flags, config=_with_truth_values(flags.config))
    check_config(flags.config, "command line")
    return flags, draft


def _is_data(name: str) -> bool:
    from loratory.data.task_file import is_data

    return is_data(name)


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
    from loratory.report.report import render_table

    _print_wide(render_table(report))
    print(f"Report: {folder / 'report.html'}")


def _print_wide(content: Any) -> None:
    """Prints tables and text; a program that reads them finds each sentence on one line."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDE).print(content)


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
            bars.start()  # not before there is something to show: a question may be asked first
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
            console.print(f"  {event.text}: {v['metric']} {v['value']:.1%} on the test examples ({v['seconds']:.1f} s)")

    try:
        yield tell
    finally:
        bars.stop()


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
        print(f"{error}.", file=sys.stderr)
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


def keep_freed_memory() -> None:
    """Starts the program anew with an allocator that keeps what it frees, and asks for it in large pages.

    glibc hands large blocks back to the kernel, which fills them with zeros again at the next step: a tenth of the time
    of a training step. It reads these settings at the start of a process only. Where any of them is set, all stay.
    """
    library, number = platform.libc_ver()
    new_enough = library == "glibc" and tuple(map(int, number.split("."))) >= (2, 35)  # older ones do worse with them
    from_a_file = bool(sys.executable) and sys.argv[0] != "-"  # a program on standard input has been read already
    if not new_enough or not from_a_file or any(name in os.environ for name in ALLOCATOR):
        return
    os.environ.update(ALLOCATOR)
    if sys.stdout:
        sys.stdout.flush()
    with contextlib.suppress(OSError):  # no executable of that name: goes on as it is
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def entry_point() -> None:
    """The console command."""
    if any(verb in COMPUTING for verb in sys.argv[1:2]) and not HELP_FLAGS & {*sys.argv}:
        keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
