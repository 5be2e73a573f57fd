"""``python -m loratory.cli``: the command line."""

from loratory.cli.main import entry_point

entry_point()
