"""Flags over the settings of a task file, and the examples that such settings give."""

import argparse
import dataclasses
import importlib.resources
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from loratory.cli.downloads import ask, can_ask
from loratory.config import Config, check_config
from loratory.errors import UserError
from loratory.printable import printable
from loratory.settings import BUILTIN, ModelConfig

if TYPE_CHECKING:
    from loratory.bases import KnownModel, Place
    from loratory.data import Example, Split, TaskFile
    from loratory.text import Renderer, TokenizedExample

# The work by which known models are judged: half a thousand examples of ordinary length.
EXAMPLES, TOKENS_PER_EXAMPLE, EPOCHS = 500, 250, 3
LONGEST_SECONDS = 3600.0
PLACES = {
    "hub cache": "found in the hub's cache",
    "package": "found in an installed package",
    "ollama": "found in Ollama",
    "hub": "which is downloaded from the hub",
}

Settings = Annotated[Config, tyro.conf.arg(name="")]  # flags are named --section.key


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Checks the data, measures baselines, fine-tunes, measures again and writes a report.

    The argument is a task file, or a data file with --answer; the default is the built-in task on the built-in model.
    """

    config: Settings = dataclasses.field(default_factory=Config)
    answer: str | None = None
    """The answer column, if a data file is given instead of a task file."""
    overwrite: bool = False
    """Replace an existing run. Only files that Loratory wrote are removed."""
    force: bool = False
    """Resume a run even if its base model or the installed packages have changed since it started."""
    yes: bool = False
    """Start without asking for confirmation; without a terminal, nothing is asked anyway."""
    json: bool = False
    """Print the report as JSON."""


def builtin_task() -> Path:
    """The task file that comes with the package: for SmolLM2 if it is on this machine, else for the built-in model."""
    from loratory.bases import SHORT_NAMES, place_of

    name = "demo.toml" if place_of(SHORT_NAMES["smollm2-135m"]).is_here else "task.toml"
    return Path(str(importlib.resources.files("loratory") / "builtin" / name))


def parse_with_task(flags: Any, arguments: list[str], verb: str) -> tuple[Any, "TaskFile | None"]:
    """Parses flags over the settings of the task file or data file that the first argument names.

    The default is the built-in task. For data files, the guessed task file is returned too; it has not been written.
    """
    names = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    if names and Path(names[0]).is_dir():
        raise _folder_error(Path(names[0]))
    rest, task_file = arguments[len(names) :], None
    if names and Path(names[0]).suffix.lower() != ".toml" and (_is_data(names[0]) or "--answer" in rest):
        rest, task_file = _guess(names, rest, writes=verb in ("run", "train"))
        config = Config.parse(task_file.toml, task_file.path)
    else:
        if len(names) > 1:
            raise UserError("Too many arguments", found=" ".join(names), expected="one task file, or data files")
        config = Config.load(names[0] if names else builtin_task())
    parsed = tyro.cli(
        flags, args=rest, default=flags(config=config), prog=f"loratory {verb}", config=(tyro.conf.FlagCreatePairsOff,)
    )
    parsed = dataclasses.replace(parsed, config=_with_booleans(parsed.config))
    check_config(parsed.config, "command line")
    if names and getattr(parsed, "overwrite", False):
        from loratory.storage import check_place

        check_place(Path(parsed.config.run.out), names)
    return parsed, task_file


def _folder_error(folder: Path) -> UserError:
    """What to do instead of giving a folder as the task file. The config.toml of a run would not resume it."""
    from loratory.storage import REQUESTED_SETTINGS, is_finished, is_run

    expected = "a task file (.toml)"
    if not is_run(folder):
        names = ", ".join(sorted(str(file) for file in folder.glob("*.toml"))[:3])
        found = f"a folder with {names}" if names else "a folder without .toml files"
        fix = "give the path of the task file, or of a data file together with --answer COLUMN"
        return UserError("The task file is a folder", str(folder), expected, found, fix)
    found = "a finished run"
    fix = f"to use the run: loratory predict {folder} DATA; to measure it again: loratory evaluate {folder}"
    if not is_finished(folder):
        found = "an unfinished run"
        fix = "to resume the run, repeat the command that started it, with its task file and flags;"
        fix += f" {folder / REQUESTED_SETTINGS} lists its settings"
    return UserError("A run directory is not a task file", str(folder), expected, found, fix)


def check_inputs(config: Config) -> None:
    """Reads the data and fills in the prompts, so that a mistake in them is told before PyTorch is loaded.

    Raises UserError. Datasets of the hub are left to the run, which downloads them.
    """
    from loratory.data import HUB, load_split

    if not any(name.startswith(HUB) for name in (*config.data.train, *config.data.validation, *config.data.test)):
        load_split(config.data, config.prompt, config.train.seed, task=config.task, code=config.code)


def check_tuned_folder(run: Path | None) -> None:
    """Raises UserError if a run is given that has no tuned model, before PyTorch is loaded."""
    if run is not None:
        from loratory.storage import tuned_folder

        tuned_folder(run)


def _is_data(name: str) -> bool:
    from loratory.data import is_data

    return is_data(name)


def is_masked_model(model: ModelConfig) -> bool:
    """Whether a model is a masked language model. Loads PyTorch, so the data should be checked before."""
    from loratory.models import is_masked

    return is_masked(model)


def _guess(names: list[str], arguments: list[str], writes: bool) -> tuple[list[str], "TaskFile"]:
    """The guessed task file for data files, and the arguments that are left. ``writes``: whether the verb is going to
    write it. Raises UserError."""
    from loratory.data import check_not_overwriting

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--answer", default="")
    parser.add_argument("--model.name", dest="model", default="")
    given, rest = parser.parse_known_args(arguments)
    task_file, model = guess(names, given.answer, given.model, yes="--yes" in rest)
    if writes:
        check_not_overwriting(task_file)
    print_remarks(task_file)
    # The guess may be folds, which exclude a test set.
    tested = any(flag in rest for flag in ("--data.test", "--data.limit-test")) and "--data.folds" not in rest
    return [*rest, "--model.name", model, *(["--data.folds", "0"] if tested else [])], task_file


def guess(
    names: Sequence[str], answer: str, model: str, path: Path | None = None, yes: bool = False
) -> tuple["TaskFile", str]:
    """The guessed task file for data files, and the name of the model in it.

    If ``model`` is empty, that is the best known model on this machine, or else one that may be downloaded, with
    ``yes`` or after a yes, or else the built-in one. Raises UserError.
    """
    from loratory.data import guess_task_file

    # With the built-in model first, so that a mistake in the data is told before models are looked for.
    task_file = guess_task_file(names, answer, is_masked_model, model or BUILTIN, path)
    if model:
        return task_file, model
    found = _suitable_model(yes)
    if found is None:
        return task_file, BUILTIN
    known, place, seconds = found
    task_file = guess_task_file(names, answer, is_masked_model, known.short, path)
    remark = (
        f"the model is {known.short}, {PLACES[place.kind]}: {known.parameters / 1e6:,.0f} million parameters, about "
    )
    minutes = max(1, round(seconds / 60))
    remark += f"{minutes} min for {EXAMPLES} examples of {TOKENS_PER_EXAMPLE} tokens; --model.name takes another"
    return dataclasses.replace(task_file, remarks=(*task_file.remarks, remark)), known.short


def _suitable_model(yes: bool) -> tuple["KnownModel", "Place", float] | None:
    """The largest known model on this machine that fits into its memory and is tuned in an hour or less, where it is,
    and the estimated seconds.

    If there is none, the largest such model on the hub without terms to accept, if it may be downloaded; else None.
    """
    from huggingface_hub import constants

    from loratory.bases import fits, known_places, training_seconds

    usable = [(m, p) for m, p in known_places() if p.is_here or (m.is_open and not constants.HF_HUB_OFFLINE)]
    if not usable:
        return None
    from loratory.machine import matmul_flops, memory_bytes, resolve_machine

    machine = resolve_machine("auto", "auto", 0)
    flops, memory = matmul_flops(machine.device, machine.matmul_dtype), memory_bytes(machine.device)
    tokens = EXAMPLES * TOKENS_PER_EXAMPLE * EPOCHS
    judged = [(model, place, training_seconds(model.parameters, tokens, flops)) for model, place in usable]
    suited = [j for j in judged if j[2] <= LONGEST_SECONDS and fits(j[0].parameters, memory)]
    here = [j for j in suited if j[1].is_here]
    if here:
        return here[-1]  # the largest
    return suited[-1] if suited and _may_download(suited[-1][0], yes) else None


def _may_download(model: "KnownModel", yes: bool) -> bool:
    """Whether the hub has the model and the person agrees to download it."""
    if not yes and not can_ask():
        what = f"No known model is on this machine. --model.name {model.short} or --yes downloads one"
        print(f"  {what} ({model.gigabytes:.2f} GB)", file=sys.stderr)
        return False
    from loratory.models import bytes_to_download

    size = bytes_to_download(ModelConfig(model.short))
    return size is not None and (
        yes or ask(f"The model for this machine is {model.short}, {size / 1e9:.2f} GB. Download it?")
    )


def print_remarks(task_file: "TaskFile") -> None:
    """Prints what the user should know about the guesses on standard error."""
    for sentence in task_file.remarks:
        print(printable(f"  {sentence[:1].upper()}{sentence[1:]}"), file=sys.stderr)


def _with_booleans(config: Config) -> Config:
    """Template arguments arrive as text; ``enable_thinking false`` means the boolean."""
    booleans = {"true": True, "false": False}
    arguments = {k: booleans.get(v, v) if isinstance(v, str) else v for k, v in config.prompt.template_kwargs.items()}
    return dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, template_kwargs=arguments))


def confirmation(yes: bool, task_file: "TaskFile | None") -> Callable[[], bool]:
    """Returns the function that asks whether to start; if so, it writes the guessed task file."""

    def confirm() -> bool:
        if not yes and can_ask() and not ask("Start?"):
            return False
        if task_file:
            from loratory.storage import write_text

            write_text(task_file.path, task_file.toml)
            print(printable(f"  Task file: {task_file.path}"), file=sys.stderr)
        return True

    return confirm


def load_examples(config: Config) -> tuple["Split", "Renderer", int]:
    """The examples of a task, the renderer, and the context in tokens, without loading weights. Raises UserError.

    Says so if a run would choose the prompt.
    """
    from loratory.data import load_split

    # A mistake in the data is told before PyTorch is loaded.
    split = load_split(config.data, config.prompt, config.train.seed, task=config.task, code=config.code)
    config = dataclasses.replace(config, task=split.task)
    from loratory.models import load_tokenizer
    from loratory.run import renderer_of_split
    from loratory.text import check_system_is_shown, start_template_process

    start_template_process()
    text = load_tokenizer(config.model)
    renderer = renderer_of_split(split, config, text, config.model.name)
    if split.prompt.system is not None:
        check_system_is_shown(renderer)
    if split.with_prompt is not None:
        print("  The prompt shown is the first of several: a run chooses one on validation examples", file=sys.stderr)
    return split, renderer, text.max_length


def render_examples(
    config: Config, choose: Callable[[Sequence["Example"]], Sequence["Example"]]
) -> tuple[list["TokenizedExample"], "Renderer"]:
    """Some of the training examples as the model sees them."""
    split, renderer, _ = load_examples(config)
    print_notes(split, renderer)
    return tokens_of(choose(split.train), renderer), renderer


def print_notes(split: "Split", renderer: "Renderer") -> None:
    """Prints how the data was read and what the template leaves out of it on standard error. Raises UserError."""
    from loratory.text import check_turns_are_shown

    for finding in split.findings:
        print(printable(f"  {finding.message}"), file=sys.stderr)
    for sentence in [] if renderer.is_masked_lm else check_turns_are_shown(split.train, renderer):
        print(printable(f"  {sentence}"), file=sys.stderr)


def tokens_of(examples: Sequence["Example"], renderer: "Renderer") -> list["TokenizedExample"]:
    """The examples as the model sees them."""
    from loratory.text import tokenize

    return [sequence for example in examples for sequence in tokenize(example, renderer)]
