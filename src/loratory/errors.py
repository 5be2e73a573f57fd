"""The two ways in which a person ends a run before its end: a mistake, and an interruption."""


class UserError(Exception):
    """A mistake in what the person gave: never a traceback, exit code 2.

    ``what`` went wrong, ``where`` (file, line, key), what was ``expected``, what was ``found``, and how to ``fix`` it.
    """

    def __init__(
        self,
        what: str,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        fix: str | None = None,
    ):
        self.what, self.where, self.expected, self.found, self.fix = what, where, expected, found, fix
        lines = [what]
        lines += [
            f"  {name}: {text}"
            for name, text in (("where", where), ("expected", expected), ("found", found), ("fix", fix))
            if text
        ]
        super().__init__("\n".join(lines))


class Interrupted(Exception):
    """Training was interrupted and saved; the same call goes on from there."""
