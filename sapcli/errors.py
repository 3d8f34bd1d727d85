"""What can go wrong, in words that a user can act on, and the exit statuses that tell it to programs."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit statuses of every command."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    GATE = 3
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class SapError(Exception):
    """An error about the input or the environment.

    Attributes:
        message: What is wrong, with which file, layer or option, in one line.
        hint: What to do about it, in one line.
        exit_status: The status that the process ends with.
    """

    exit_status = ExitStatus.ERROR

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[SapError], tuple[str, str]]:
        """For handing an error to another process."""
        return type(self), (self.message, self.hint)


def unexpected(error: BaseException, what: str = "something went wrong that should not") -> SapError:
    """The two lines about an exception that nothing here was prepared for.

    Args:
        error: The exception.
        what: What went wrong, in words.
    """
    text = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
    return SapError(f"{what}: {text}", "`sap --debug COMMAND` shows where that was; please report it")


class UsageError(SapError):
    """An option or argument that makes no sense, alone or beside another one."""

    exit_status = ExitStatus.USAGE


class CheckpointError(SapError):
    """A checkpoint that cannot be read, understood or written."""


class ArchitectureError(SapError):
    """An architecture that cannot be found, built, or filled with the checkpoint's weights."""


class DatasetError(SapError):
    """A data folder, label file, list of samples or image that cannot be used."""


class NumericsError(SapError):
    """A NaN, an infinity or a failed decomposition, with the layer that it came from."""


class DeviceError(SapError):
    """A device that this machine does not have."""


class GateError(SapError):
    """A quality gate that was not met (`--require-gain`, `--min-accuracy`)."""

    exit_status = ExitStatus.GATE
