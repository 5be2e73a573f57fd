"""Exceptions that end a run early (invalid input, the machine, interruption) and the exit codes of the command line."""

import difflib
from collections.abc import Iterable

DONE, FAILED, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class UserError(Exception):
    """Invalid input from the user: shown as a message without a traceback; exit code 2.

    The message says ``what`` is wrong, ``where`` (file, line, key), what was ``expected``, what was ``found``, and how
    to ``fix`` it.
    """

    exit_code = WRONG_INPUT

    def __init__(
        self,
        what: str,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ):
        self.what, self.where, self.expected, self.found, self.fix = what, where, expected, found, fix
        details = (("where", where), ("expected", expected), ("found", found), ("fix", fix))
        super().__init__("\n".join([what, *(f"  {name}: {text}" for name, text in details if text)]))


class MachineError(UserError):
    """The machine is at fault, not the input: a full disk, too little memory; exit code 1."""

    exit_code = FAILED


class Interrupted(Exception):
    """The run was interrupted and its progress is saved; repeating the same call resumes it."""

    def __init__(self, message: str, exit_code: int = INTERRUPTED):
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the process must end. Whatever stops at Ctrl-C stops here too."""


def exit_code_of(stop: KeyboardInterrupt) -> int:
    """The exit code of a process that ends because of Ctrl-C, or because it was told to end."""
    return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED


def did_you_mean(name: str, names: Iterable[str]) -> str | None:
    """A question that suggests the most similar of ``names``, whatever their case, or None if none is similar."""
    spelled = {candidate.lower(): candidate for candidate in names}
    match = difflib.get_close_matches(name.lower(), list(spelled), n=1)
    return f"did you mean {spelled[match[0]]!r}?" if match else None
