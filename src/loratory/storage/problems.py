"""Errors of files and disks, as one sentence with its remedy."""

import errno
import os
import re

from loratory.errors import MachineError, UserError

_FREE_SPACE = "free some space, and repeat the command: it goes on where it stopped"
_NO_RIGHT = "change the permissions, or choose another folder"
# Name of the error -> whether the machine or the path is at fault, what is wrong, and what to do.
_PROBLEMS: dict[str, tuple[type[UserError], str, str]] = {
    "ENOSPC": (MachineError, "The disk is full", _FREE_SPACE),
    "EDQUOT": (MachineError, "The disk quota is used up", _FREE_SPACE),
    "EIO": (MachineError, "The disk cannot be read or written", "check the disk, or use another one"),
    "EFBIG": (MachineError, "A file would be larger than is allowed here", "raise the limit (ulimit -f)"),
    "EMFILE": (MachineError, "Too many files are open", "raise the limit (ulimit -n)"),
    "ENFILE": (MachineError, "Too many files are open on this machine", "close other programs"),
    "ENOMEM": (MachineError, "Out of memory", "close other programs, or use a machine with more memory"),
    "ESTALE": (MachineError, "The network disk has lost a file", "mount it again, and repeat the command"),
    "EROFS": (UserError, "The disk is read-only", "choose a folder on a disk that can be written"),
    "EACCES": (UserError, "Permission denied", _NO_RIGHT),
    "EPERM": (UserError, "Permission denied", _NO_RIGHT),
    "ENAMETOOLONG": (UserError, "The name of a file is too long", "choose a shorter name"),
    "ELOOP": (UserError, "Symbolic links go in a circle", "choose another path, or repair the links"),
    "ENOTDIR": (UserError, "A part of the path is a file, not a folder", "choose another path"),
    "EISDIR": (UserError, "The path is a folder, not a file", "give the path of a file"),
    "EEXIST": (UserError, "There is a file or a broken link in the place of a folder", "choose another path"),
    "ENOENT": (UserError, "A file or folder is missing", "check the path"),
    "EBUSY": (UserError, "The file is in use", "close the program that uses it, and repeat the command"),
    "ETXTBSY": (UserError, "The file is in use", "close the program that uses it, and repeat the command"),
    "EINVAL": (UserError, "The path is not valid here", "choose another path"),
}


def machine_problem(error: BaseException) -> UserError | None:
    """The message for an error of the file system; None if the error is of another kind.

    Libraries written in Rust report such errors with the number of the system in their text.
    """
    where, number = None, None
    if isinstance(error, OSError):
        where, number = error.filename, error.errno
    elif match := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(match[1])
    if number is None:
        return None
    place, name = None if where is None else str(where), errno.errorcode.get(number, "")
    if name in _PROBLEMS:
        kind, what, fix = _PROBLEMS[name]
        return kind(what, place, fix=fix)
    return MachineError("The system refused an operation", place, found=f"{os.strerror(number)} ({name or number})")
