"""Running a command line: from its arguments to its exit status, with every error as two lines on stderr."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence

import typer

from sapcli.commands.app import DEBUG, HELP, app
from sapcli.commands.line.settings_file import SettingsFile
from sapcli.errors import DeviceError, ExitStatus, SapError, UsageError, unexpected
from sapcli.machine.heap import keep_freed_memory
from sapcli.machine.out_of_memory import is_out_of_memory
from sapcli.machine.parallel import membership
from sapcli.machine.signals import Terminated

_JOINING = "sapcli.machine.parallel.joining"
"""The module that is imported once a command joins the other processes of its run."""
_COMPLETION = "_SAP_COMPLETE"
"""The environment variable by which a shell asks for completions."""
_SECONDS_FOR_THE_FIRST = 3.0


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit status; the errors are on stderr."""
    try:
        program = typer.main.get_command(app)
        # Help comes also when the settings file is damaged.
        help_wanted = {"-h", "--help", "--version"} & set(sys.argv[1:] if arguments is None else arguments)
        settings = HELP if help_wanted else None
        status = program.main(args=arguments, prog_name="sap", standalone_mode=False, obj=settings)
    except SapError as error:
        return _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        return ExitStatus.INTERRUPTED
    except Terminated:
        return ExitStatus.TERMINATED
    except SystemExit as leaving:
        # What Typer and Rich make of a closed pipe.
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        _leave_stdout()
        return ExitStatus.DONE
    except Exception as error:
        if _COMPLETION in os.environ:
            return _fail(UsageError("the shell's question for completions makes no sense", f"unset {_COMPLETION}"))
        known = _known(error, sys.argv[1:] if arguments is None else arguments)
        known.__cause__ = error
        return _fail(known)
    return int(status or 0)


def _known(error: Exception, arguments: Sequence[str]) -> SapError:
    """A usage error that Typer found, a fault of the machine, or one of ours, in words that can be acted on."""
    if is_out_of_memory(error):
        return DeviceError("there is not enough memory", "end what else uses it, or run on another machine or --device")
    if isinstance(error, OSError):
        what = "reading or writing failed" if error.filename is None else f"{error.filename} cannot be used"
        return SapError(f"{what}: {error.strerror or error}", "check the file, its folder and its disk")
    describe = getattr(error, "format_message", None)
    if describe is None:
        return _crashed(error, arguments)
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    command = "sap" if context is None else context.command_path
    message, hint = describe() or "no command was given", f"see `{command} --help`"
    if context is not None and parameter is not None:
        if parameter.name == "checkpoints":
            # A single argument is taken for DATA, and what is missing seems to be CHECKPOINT.
            message, hint = (
                "Missing argument: CHECKPOINT and DATA are both needed",
                f"{command} CHECKPOINT DATA; {hint}",
            )
        source = context.get_parameter_source(parameter.name)
        file = context.find_root().obj
        if source is not None and source.name == "DEFAULT_MAP" and isinstance(file, SettingsFile):
            hint = f"it is set in {file.name}; {hint}"
    return UsageError(message, hint)


def _crashed(error: Exception, arguments: Sequence[str]) -> SapError:
    """A fault of ours, which is written down to be reported."""
    from sapcli.commands.line.crash import write_crash

    told, file = unexpected(error), write_crash(error, arguments)
    if file is None:
        return told
    hint = f"please report it with {file}, which names none of your files; `sap --debug COMMAND` shows the traceback"
    return SapError(told.message, hint)


def _fail(error: SapError) -> int:
    from sapcli.commands.line.console import print_error

    joined = _leave(error)
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    if not membership.is_first():
        if joined:
            return error.exit_status
        # The first process tells what is wrong for all; where it goes on, it is wrong here alone, and all end with it.
        time.sleep(_SECONDS_FOR_THE_FIRST)
        message = f"rank {membership.rank()} of {membership.world_size()}: {error.message}"
        error = type(error)(message, error.hint)
    print_error(error)
    try:
        sys.stdout.flush()
    except OSError:
        _leave_stdout()
    return error.exit_status


def _leave(error: SapError | None = None) -> bool:
    """Tell the other processes of the run, if it has come to that, that this one ends."""
    joining = sys.modules.get(_JOINING)
    return joining is not None and bool(joining.leave(error))


def _leave_stdout() -> None:
    """Point stdout elsewhere, so that the interpreter's last flush does not fail loudly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def start() -> int:
    """Run the process' own command line and return its exit status."""
    keep_freed_memory()
    status = run()
    if status == ExitStatus.DONE:
        _leave()
    return status
