"""The commands: parse, call, print. Torch is imported by what they call, never here, so that help comes at once."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from sapcli import __version__
from sapcli.configuration import default_map, effective_settings, find_settings, render_settings
from sapcli.errors import DeviceError, ExitStatus, SapError, UsageError
from sapcli.grouping import grouped
from sapcli.heap import keep_freed_memory
from sapcli.memory import is_out_of_memory
from sapcli.options import (
    DATA,
    GATES,
    RUN,
    AllRows,
    CheckpointArgument,
    CheckpointArguments,
    DataArgument,
    DataOptions,
    ModelOptions,
    OutputOptions,
    ProjectionOptions,
    RecordOptions,
    RunOptions,
    SelectionOptions,
    Summary,
    SuspectsOptions,
    Trusted,
    option,
)
from sapcli.settings import OutputFormat, PlanFormat, ReportForm
from sapcli.signals import Terminated

app = typer.Typer(
    name="sap",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Repair an image classifier that was trained on mislabeled data, without retraining it.\n\n"
    "Scaled Activation Projection trusts the samples whose labels the model itself finds believable, sees which"
    " directions of every layer's inputs they use, and projects the weights onto those. It takes minutes and needs"
    " neither gradients nor clean labels.\n\n"
    "Start with: sap project model.safetensors data/",
    epilog="Options are taken from flags, then from the environment (--batch-size: SAP_BATCH_SIZE), then from sap.toml"
    " or [tool.sap] in pyproject.toml; `sap config` shows them. Exit status: 0 done, 1 an error about input or"
    " environment, 2 wrong usage, 3 a quality gate was not met, 130 interrupted, 143 terminated.",
)
cache_app = typer.Typer(no_args_is_help=True, help="See or empty the folder of intermediate artifacts.")
app.add_typer(cache_app, name="cache")

_DEBUG = "SAP_DEBUG"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sap {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ[_DEBUG] = "1"


@app.command()
@grouped
def select(
    checkpoint: CheckpointArgument,
    data: DataArgument,
    model: ModelOptions,
    images: DataOptions,
    selection: SelectionOptions,
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """Find the samples whose labels can be trusted: of each class, those with the lowest loss.

    Writes JSON Lines, one sample a line: index, path, label, loss.

    Example: sap select model.safetensors data/ -o trusted.jsonl
    """
    from sapcli import commands
    from sapcli.inputs import Inputs

    commands.select(Inputs(checkpoint, data, model, images, run), selection, output)


@app.command()
@grouped
def activations(
    checkpoint: CheckpointArgument,
    data: DataArgument,
    model: ModelOptions,
    images: DataOptions,
    selection: SelectionOptions,
    run: RunOptions,
    output: OutputOptions,
    trusted: Trusted = None,
    all_rows: AllRows = False,
) -> None:
    """Decompose every layer's input activations on the trusted samples (SVD) into bases.

    Writes bases.safetensors beside the checkpoint, or what -o names, and prints its path.

    Example: sap activations model.safetensors data/ --trusted trusted.jsonl -o bases.safetensors
    """
    from sapcli import commands
    from sapcli.inputs import Inputs

    commands.activations(Inputs(checkpoint, data, model, images, run, all_rows), selection, trusted, output)


@app.command()
@grouped
def project(
    checkpoints: CheckpointArguments,
    data: DataArgument,
    model: ModelOptions,
    images: DataOptions,
    selection: SelectionOptions,
    projection: ProjectionOptions,
    run: RunOptions,
    output: OutputOptions,
    record: RecordOptions,
    trusted: Trusted = None,
    all_rows: AllRows = False,
    require_gain: Annotated[
        float | None,
        option(
            "--require-gain",
            panel=GATES,
            metavar="POINTS",
            help="Write nothing and exit 3 unless validation accuracy rises by this many points.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, option("--dry-run", panel=RUN, help="Show what would be done with every weight, and how long it takes.")
    ] = False,
) -> None:
    """Repair a checkpoint: the whole run, from the model and its noisy data to a corrected checkpoint.

    Trusted samples and activations that are neither given nor cached are made first. Writes NAME.sap.safetensors beside
    the checkpoint, or what -o names, and prints its path. The unchanged model is always a candidate: what cannot be
    improved is written as it was. Several checkpoints of one training set are repaired with one trusted set.

    Example: sap project model.safetensors data/
    """
    from sapcli import repairing
    from sapcli.inputs import Inputs

    request = repairing.Request(selection, trusted, projection, output, record, require_gain, dry_run)
    repairing.project(checkpoints, Inputs(checkpoints[0], data, model, images, run, all_rows), request)


@app.command()
@grouped
def inspect(
    checkpoint: CheckpointArgument,
    model: ModelOptions,
    run: RunOptions,
    format: Annotated[  # noqa: A002
        PlanFormat | None, option("--format", panel=RUN, help="A table on a terminal and JSON otherwise by default.")
    ] = None,
) -> None:
    """Show what a checkpoint is, what a repair would do with every weight, and what it would take.

    Example: sap inspect model.safetensors
    """
    from sapcli import planning

    planning.inspect(checkpoint, model, run, format)


@app.command(name="eval")
@grouped
def evaluate(
    checkpoint: CheckpointArgument,
    data: DataArgument,
    model: ModelOptions,
    images: DataOptions,
    run: RunOptions,
    output: OutputOptions,
    baseline: Annotated[
        str | None,
        option(
            "--baseline", panel=DATA, metavar="CHECKPOINT", help="Another checkpoint, to measure the difference to."
        ),
    ] = None,
    min_accuracy: Annotated[
        float | None, option("--min-accuracy", panel=GATES, metavar="PERCENT", help="Exit 3 below this top-1 accuracy.")
    ] = None,
    format: Annotated[  # noqa: A002
        OutputFormat | None, option("--format", panel=RUN, help="A table on a terminal and JSON otherwise by default.")
    ] = None,
    summary: Summary = None,
) -> None:
    """Measure a checkpoint on DATA/test (else DATA/val, else DATA itself): accuracy, loss, calibration.

    Example: sap eval model.sap.safetensors data/ --baseline model.safetensors
    """
    from sapcli import commands
    from sapcli.inputs import Inputs

    inputs = Inputs(checkpoint, data, model, images, run)
    commands.evaluate(inputs, baseline, min_accuracy, format, output, summary)


@app.command()
def verify(
    checkpoint: CheckpointArgument,
    original: Annotated[
        str | None,
        option("--input", panel=DATA, metavar="ORIGINAL", help="The checkpoint that was repaired: what else changed?"),
    ] = None,
    bases: Annotated[
        list[str] | None,
        option(
            "--bases",
            panel=DATA,
            metavar="FILE",
            help="The bases of the trusted samples, and of the forget set where there was one: with --input, the"
            " projection is made again and compared. May be repeated.",
        ),
    ] = None,
    quiet: Annotated[bool, option("--quiet", "-q", panel=RUN, help="Say nothing but errors.")] = False,
) -> None:
    """Check a corrected checkpoint against what its metadata says of how it was made.

    Exits 1 where something does not hold.

    Example: sap verify model.sap.safetensors --input model.safetensors --bases bases.safetensors
    """
    from sapcli import commands

    commands.verify(checkpoint, original, bases or [], quiet)


@app.command()
@grouped
def suspects(
    checkpoint: CheckpointArgument,
    data: DataArgument,
    model: ModelOptions,
    images: DataOptions,
    options: SuspectsOptions,
    run: RunOptions,
    output: OutputOptions,
) -> None:
    """List the training samples whose labels a repaired model contradicts, the most suspicious first.

    Writes JSON Lines, one sample a line: path, given (the label), suggested (the model's class), score (the
    cross-entropy with the label, in nats).

    Example: sap suspects model.sap.safetensors data/ --html suspects.html
    """
    from sapcli import reviewing
    from sapcli.inputs import Inputs

    reviewing.suspects(Inputs(checkpoint, data, model, images, run), options, output)


@app.command()
def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What `sap project --report` wrote.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE|-", help="Where to write: .html, .md or .json.")
    ] = None,
    form: Annotated[
        ReportForm | None, typer.Option("--format", help="By default what -o's ending says, and md on stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")] = False,
) -> None:
    """Render the report of a repair again from its JSON.

    Example: sap report repair.json -o repair.html
    """
    from sapcli import reviewing

    reviewing.report(result, form, OutputOptions(output, force))


@app.command()
def config(
    context: typer.Context,
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="Whose options to show.")] = "project",
) -> None:
    """Show the settings that a command would run with, and where each comes from: ready for sap.toml.

    A flag goes before an environment variable (--batch-size: SAP_BATCH_SIZE), that before sap.toml or [tool.sap] in
    pyproject.toml of the working folder, and that before the default.

    Example: sap config project
    """
    from sapcli import console

    settings = effective_settings(context.parent, command, find_settings(Path()))
    console.print_result(render_settings(command, settings).rstrip())


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the data and the checkpoints go.")] = Path("demo"),
) -> None:
    """See a repair from start to end on scikit-learn's handwritten digits, in a minute."""
    from sapcli.demo import run_demo

    run_demo(folder)


CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache-dir", metavar="DIR", envvar="SAP_CACHE", help="The folder, if not the usual one."),
]


@cache_app.command()
def info(cache_dir: CacheFolder = None) -> None:
    """Show where artifacts are kept, how many, and their size."""
    from sapcli import commands

    commands.cache_info(cache_dir)


@cache_app.command()
def clear(cache_dir: CacheFolder = None) -> None:
    """Remove all artifacts; the next run makes them again."""
    from sapcli import commands

    commands.cache_clear(cache_dir)


def run(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit status; the errors are on stderr."""
    try:
        program = typer.main.get_command(app)
        defaults = _file_settings(program, arguments)
        status = program.main(args=arguments, prog_name="sap", standalone_mode=False, default_map=defaults)
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
        return _fail(_known(error))
    return int(status or 0)


def _file_settings(program: object, arguments: list[str] | None) -> dict[str, object]:
    """The defaults that the settings file of the working folder gives; help comes also when that is damaged."""
    if {"-h", "--help", "--version"} & set(sys.argv[1:] if arguments is None else arguments):
        return {}
    file = find_settings(Path())
    return {} if file is None else default_map(file, program)


def _known(error: Exception) -> SapError:
    """A usage error that Typer found or a fault of the machine, in our words; anything else is raised on."""
    if is_out_of_memory(error):
        return DeviceError("there is not enough memory", "end what else uses it, or run on another machine or --device")
    if isinstance(error, OSError):
        what = "reading or writing failed" if error.filename is None else f"{error.filename} cannot be used"
        return SapError(f"{what}: {error.strerror or error}", "check the file, its folder and its disk")
    describe = getattr(error, "format_message", None)
    if describe is None:
        raise error
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
        if source is not None and source.name == "DEFAULT_MAP" and (file := find_settings(Path())) is not None:
            hint = f"it is set in {file.name}; {hint}"
    return UsageError(message, hint)


def _fail(error: SapError) -> int:
    from sapcli.console import print_error

    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    print_error(error)
    try:
        sys.stdout.flush()
    except OSError:
        _leave_stdout()
    return error.exit_status


def _leave_stdout() -> None:
    """Point stdout elsewhere, so that the interpreter's last flush does not fail loudly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def start() -> int:
    """Run the process' own command line and return its exit status."""
    keep_freed_memory()
    return run()
