"""The base of every error that a user can meet and mend: its message is all that the command line prints."""

import errno


class LsmfmError(Exception):
    """Something expected went wrong: the message names the file or key, the value, what is allowed, what to do."""


class InputError(LsmfmError, ValueError):
    """A value that comes from a user's configuration, arguments or files is not allowed."""


class MissingInput(LsmfmError, FileNotFoundError):
    """A file or folder that a user's configuration or arguments name is not there."""


# What a person can do about an error of the operating system.
_ADVICE = {
    errno.ENOSPC: "the disk is full: make room, or write to another disk, then run the command again",
    errno.EDQUOT: "your quota on that disk is used up: make room, or write elsewhere, then run the command again",
    errno.EFBIG: "the file system or a limit (ulimit -f) allows no larger file: write to another disk",
    errno.EACCES: "permission denied: ask its owner for access, or name another path",
    errno.EPERM: "permission denied: ask its owner for access, or name another path",
    errno.EROFS: "the file system is read-only: name a path on another one",
    errno.ENOENT: "no such file or folder: look for a mistake in the path",
    errno.EISDIR: "it is a folder, and a file is needed: name a file",
    errno.ENOTDIR: "a file stands where a folder is needed: name another path",
    errno.EEXIST: "it is there already: name another path",
    errno.ENAMETOOLONG: "the name is too long for the file system: take a shorter one",
    errno.ELOOP: "its links lead in a circle: remove one of them",
    errno.EIO: "the disk reports a fault: look at `dmesg`, and take the file from a copy",
    errno.EMFILE: "too many files are open: raise the limit with `ulimit -n 65536`",
}


def os_reason(error: OSError) -> str:
    """What the operating system objects to, and what to do about it, without the path."""
    if error.errno in _ADVICE:
        return _ADVICE[error.errno]
    return error.strerror or " ".join(str(error).split()) or type(error).__name__
