"""The entry point: picks the verb, turns errors into messages and exit codes."""

import os
import sys
import warnings

from loratory.cli import ask, chat, check, compare, evaluate, fill, init, models, predict, run, show, train
from loratory.cli.allocator import keep_freed_memory
from loratory.cli.crash import crash_report, memory_problem, whole_traceback
from loratory.cli.help import verb_help
from loratory.errors import (
    DONE,
    FAILED,
    WRONG_INPUT,
    Interrupted,
    UserError,
    did_you_mean,
    exit_code_of,
)
from loratory.printable import printable
from loratory.signals import termination_raised

MODULES = (run, init, check, train, evaluate, predict, ask, fill, chat, compare, show, models)
VERBS = {module.VERB.name: module.VERB for module in MODULES}
COMPUTING = ("run", "train", "evaluate", "predict")
HELP_FLAGS = {"-h", "--help", "--help-all"}
HELP = """usage: loratory VERB [ARGUMENTS]

Fine-tunes a language model on your own examples and measures whether that helped.

  run [TASK.toml]         baselines, fine-tuning, evaluation, report; the default is built in
  run DATA --answer COL   the same for a data file; guesses and writes the task file
  init DATA --answer COL  only guess the task file, and show three rendered examples
  check [TASK.toml]       look for faults of the data: duplicates, leaks, inconsistent labels
  train TASK.toml         only fine-tune: write the adapter, measure nothing
  evaluate RUN            measure all systems of a run again and rewrite its report
  predict RUN DATA        answer every row of a file, as JSON lines
  ask "TEXT"              ask a model or a run one question
  fill "... [MASK] ..."   the most likely tokens for each mask of a text
  chat [RUN]              talk with a model or a run; base and tuned side by side
  compare RUN_A RUN_B     compare two runs on the same test examples
  show [TASK.toml]        training examples token by token, trained tokens marked
  models                  known models: where they are, and what they need to be trained

`loratory VERB --help` shows the common flags of a verb, `--help-all` every flag.
Every key of a task file is a flag, as in --train.learning-rate 2e-4.
Data files: csv, tsv, json, jsonl, parquet, xlsx, xls, ods, txt, or hub:owner/name.
Exit codes: 0 success, 1 failure (check: faulty data), 2 invalid input, 130 interrupted and 143 terminated (resumable).
"""


def main(arguments: list[str]) -> int:
    """Runs one verb; returns the exit code."""
    if not arguments or arguments[0] in {*HELP_FLAGS, "help"}:
        print(HELP, end="")
        return DONE
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("loratory"))
        return DONE
    verb = VERBS.get(arguments[0])
    if verb is None:
        error = UserError(
            f"Unknown verb {arguments[0]!r}", None, ", ".join(VERBS), fix=did_you_mean(arguments[0], VERBS)
        )
        print(printable(f"error: {error}"), file=sys.stderr)
        return WRONG_INPUT
    if HELP_FLAGS & {*arguments}:
        print(verb_help(verb, everything="--help-all" in arguments), end="")
        return DONE
    _silence_libraries()
    try:
        with termination_raised():
            code = verb.execute(arguments[1:])
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        kept = " Repeat the command, without --overwrite, to go on; what was finished is kept."
        print(f"Interrupted.{kept if verb.name in COMPUTING else ''}", file=sys.stderr)
        return exit_code_of(error)
    except Interrupted as error:
        print(printable(f"{error}."), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever reads our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        from loratory.storage import machine_problem

        problem = memory_problem(error) or machine_problem(error)
        text = whole_traceback(error) or (f"error: {problem}" if problem else crash_report(error))
        print(printable(text), file=sys.stderr)
        return problem.exit_code if problem else FAILED
    return DONE if code is None else code


def _silence_libraries() -> None:
    """Progress bars and hints of the libraries would garble our own display."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore", FutureWarning)


def entry_point() -> None:
    """The console command."""
    if any(verb in COMPUTING for verb in sys.argv[1:2]) and not HELP_FLAGS & {*sys.argv}:
        keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
