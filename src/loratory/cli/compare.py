"""``loratory compare``: two runs on the same test examples."""

import dataclasses
from pathlib import Path

import tyro

from loratory.cli.output import print_json, print_text, print_wide
from loratory.cli.verb import Verb
from loratory.errors import UserError
from loratory.printable import printable_values


@dataclasses.dataclass(frozen=True)
class CompareFlags:
    """Compares two runs on the same test examples: which is better, and which settings differ."""

    run_a: tyro.conf.Positional[Path]
    """A run directory."""
    run_b: tyro.conf.Positional[Path]
    """Another run directory; differences are RUN_B - RUN_A."""
    json: bool = False
    """Print the comparison as JSON."""
    html: Path | None = None
    """Also write the comparison as a page."""


def execute(arguments: list[str]) -> None:
    flags = tyro.cli(CompareFlags, args=arguments, prog="loratory compare")
    from loratory.storage import check_is_run, check_replaceable, write_text

    for run in (flags.run_a, flags.run_b):
        check_is_run(run)
    from loratory.report import compare_runs, comparison_page, read_pair, render_comparison

    if flags.html:
        check_replaceable(flags.html, [])
        if flags.html.suffix.lower() not in (".html", ".htm"):
            raise UserError("A page needs a name that ends in .html", "--html", found=str(flags.html))
    pair = read_pair(flags.run_a, flags.run_b)
    comparison = compare_runs(*pair)
    if flags.html:
        write_text(flags.html, comparison_page(*pair, comparison))
    if flags.json:
        print_json(comparison)
        return
    print_wide(render_comparison(printable_values(comparison)))
    if flags.html:
        print_text(f"Page: {flags.html}")


VERB = Verb(
    "compare",
    "RUN_A RUN_B",
    CompareFlags,
    ("loratory compare runs/papers runs/papers-rank-16 --html comparison.html",),
    None,
    execute,
)
