"""``loratory show``: training examples, token by token."""

import dataclasses
import json

from loratory.cli.output import print_json, print_tokens
from loratory.cli.task_arguments import Settings, parse_with_task, render_examples
from loratory.cli.verb import Verb
from loratory.config import Config
from loratory.errors import UserError


@dataclasses.dataclass(frozen=True)
class ShowFlags:
    """Shows training examples token by token, with trained tokens on green. The argument is the same as for run."""

    config: Settings = dataclasses.field(default_factory=Config)
    count: int = 2
    """How many training examples to show."""
    padded: bool = False
    """Print input_ids, attention_mask and shifted labels, with -100 for tokens that are not trained."""
    json: bool = False
    """Print JSON."""


def execute(arguments: list[str]) -> None:
    flags, _ = parse_with_task(ShowFlags, arguments, "show")
    if flags.count < 1:
        raise UserError("There is nothing to show", "--count", "1 or more", str(flags.count))
    sequences, renderer = render_examples(flags.config, lambda train: train[: flags.count])
    from loratory.predict import padded_arrays, token_records
    from loratory.tree import pad_id_of

    if flags.padded:
        arrays = padded_arrays(sequences, pad_id_of(renderer))
        text = json.dumps(arrays) if flags.json else "\n".join(f"{k}\n{_matrix(v)}" for k, v in arrays.items())
        print(text)
    elif flags.json:
        rows = [{"source": s.source, "tokens": token_records(s, renderer)} for s in sequences]
        print_json(rows)
    else:
        print_tokens(sequences)


def _matrix(rows: list[list[int]]) -> str:
    return "\n".join("  " + " ".join(map(str, row)) for row in rows)


VERB = Verb(
    "show",
    "[TASK.toml | DATA --answer COLUMN]",
    ShowFlags,
    ("loratory show papers.toml --count 1", "loratory show papers.toml --padded"),
    ("model.name", "data.train", "data.answer", "prompt.system", "prompt.user", "prompt.template_kwargs"),
    execute,
)
