"""Errors a person can act on, and the exit code each kind ends the process with."""

import errno

INTERRUPTED, TERMINATED = 130, 143  # exit codes after Ctrl-C and after SIGTERM, as shells have them
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # of an OSError: room or the disk itself is gone


class RegraftError(Exception):
    """Something the user can put right: the message says what is wrong, where, and what to do next.

    Never retried: bad data stays bad. Ends the process with `exit_code` and without a traceback.
    """

    exit_code = 2


class SettingsError(RegraftError):
    """params.yaml is missing, unreadable or holds values that are not allowed."""


class DataError(RegraftError):
    """The source or the prepared data cannot be trained on."""


class BackboneError(RegraftError):
    """A backbone is unknown, cannot be had here, or its weights do not verify."""


class TrainingError(RegraftError):
    """Training went wrong in a way that another attempt would repeat (loss is not a number, out of memory)."""


class Diverged(TrainingError):
    """The loss stopped being a number: the learning rate was too high."""


class RegistryError(RegraftError):
    """The model registry holds no such model, or refuses what was asked."""


class ResourceError(RegraftError):
    """A disk, network or server gave out; the same work may succeed later, so the flow retries it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h
