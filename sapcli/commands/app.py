"""The commands on a checkpoint: parse, call, print. Torch is imported by what they call, so that help comes at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sapcli import __version__
from sapcli.commands.around.arguments import add_commands
from sapcli.commands.line.grouping import grouped
from sapcli.commands.line.options import (
    DATA,
    GATES,
    RUN,
    AllRows,
    CheckpointArgument,
    CheckpointArguments,
    DataArgument,
    DataOptions,
    FormatOfResult,
    ModelOptions,
    OutputOptions,
    RequireGain,
    RunOptions,
    SelectionOptions,
    Summary,
    Trusted,
    option,
)
from sapcli.commands.line.parsing import finite
from sapcli.commands.line.polish_options import PolishOptions
from sapcli.commands.line.project_options import ProjectionOptions, RecordOptions, WritingOptions
from sapcli.commands.line.settings_file import default_map, find_settings, named_settings
from sapcli.commands.line.suspects_options import SuspectsOptions
from sapcli.machine.parallel.membership import is_first, stand_alone, world_size
from sapcli.settings import OutputFormat, PlanFormat, ResultFormat, SamplesFormat

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
    " environment, 2 wrong usage, 3 a quality gate was not met, 129 hung up, 130 interrupted, 143 terminated.",
)

DEBUG = "SAPDEBUG"
SHARED_COMMANDS = frozenset({"select", "activations", "project", "polish", "eval", "suspects"})
"""The commands whose work several processes share; of `polish`, the training alone."""
MOST_DEVICES = 1024
HELP = object()
"""What the context holds while help is asked for, and no settings file is read."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sap {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            envvar="SAP_CONFIG",
            help="Take settings from this file, those too that say what is written and which code runs.",
        ),
    ] = None,
    devices: Annotated[
        int,
        typer.Option(
            "--devices",
            metavar="N",
            min=1,
            max=MOST_DEVICES,
            envvar="SAP_DEVICES",
            help="Share the work of select, activations, project, polish, eval and suspects among N processes of this"
            " machine, each on a GPU of its own where there are any. For several machines: torchrun -m sapcli ...",
        ),
    ] = 1,
) -> None:
    if debug:
        os.environ[DEBUG] = "1"
    _share_work(context.invoked_subcommand, devices)
    # Help comes also when the file is damaged.
    if context.obj is not HELP:
        context.obj = find_settings(Path()) if config is None else named_settings(config)
        if context.obj is not None:
            context.default_map = default_map(context.obj, context.command)


def _share_work(command: str | None, devices: int) -> None:
    """Start the processes that share a command's work, or make sure that one that nobody shares runs once."""
    shared = command in SHARED_COMMANDS
    if world_size() > 1 and not shared:
        if not is_first():
            raise typer.Exit
        stand_alone()
    if world_size() > 1:
        # Else each process that ends in an error has pages about the connection to the one that did before.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if devices > 1 and shared and world_size() == 1:
        from sapcli.machine.parallel.launch import launch

        raise typer.Exit(launch(devices))


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
    output_format: Annotated[
        SamplesFormat, option("--format", panel=RUN, help="An object a line, or one array of them.")
    ] = SamplesFormat.JSONL,
) -> None:
    """Find the samples whose labels can be trusted: of each class, those with the lowest loss.

    Writes JSON Lines, one sample a line: index, path, label, loss.

    Example: sap select model.safetensors data/ -o trusted.jsonl
    """
    from sapcli.commands.line.inputs import Inputs
    from sapcli.commands.select import select as command

    command(Inputs(checkpoint, data, model, images, run), selection, output, output_format)


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
    output_format: FormatOfResult = ResultFormat.TEXT,
) -> None:
    """Decompose every layer's input activations on the trusted samples (SVD) into bases.

    Writes bases.safetensors beside the checkpoint, or what -o names, and prints its path.

    Example: sap activations model.safetensors data/ --trusted trusted.jsonl -o bases.safetensors
    """
    from sapcli.commands.activations import activations as command
    from sapcli.commands.line.inputs import Inputs

    command(Inputs(checkpoint, data, model, images, run, all_rows), selection, trusted, output, output_format)


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
    writing: WritingOptions,
    record: RecordOptions,
    trusted: Trusted = None,
    all_rows: AllRows = False,
    require_gain: RequireGain = None,
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
    from sapcli.commands.line.inputs import Inputs
    from sapcli.commands.project import Request
    from sapcli.commands.project import project as command

    request = Request(selection, trusted, projection, output, writing, record, require_gain, dry_run)
    command(checkpoints, Inputs(checkpoints[0], data, model, images, run, all_rows, writing.keep_extra), request)


@app.command()
@grouped
def polish(
    checkpoint: CheckpointArgument,
    data: DataArgument,
    model: ModelOptions,
    images: DataOptions,
    options: PolishOptions,
    run: RunOptions,
    output: OutputOptions,
    writing: WritingOptions,
    record: RecordOptions,
    require_gain: RequireGain = None,
) -> None:
    """Train a repaired model on for a few epochs, with gradients: minutes on a GPU, and better than a repair alone.

    Repairs the checkpoint first, unless that was done, blends each label with the repaired model's own answer, and
    trains with varied and mixed images; nothing has to be tuned. Writes NAME.polished.safetensors beside the
    checkpoint, or what -o names, and prints its path. The given and the repaired model are candidates too: the one that
    is best on the validation images is written. A run that was interrupted goes on after its last epoch.

    Example: sap polish model.safetensors data/
    """
    from sapcli.commands.line.inputs import Inputs
    from sapcli.commands.polish import PolishRequest
    from sapcli.commands.polish import polish as command

    request = PolishRequest(options, output, writing, record, require_gain)
    command(Inputs(checkpoint, data, model, images, run, keep_extra=writing.keep_extra), request)


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
    from sapcli.commands.inspect import inspect as command

    command(checkpoint, model, run, format)


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
        float | None,
        option(
            "--min-accuracy",
            panel=GATES,
            metavar="PERCENT",
            callback=finite,
            help="Exit 3 below this top-1 accuracy.",
        ),
    ] = None,
    format: Annotated[  # noqa: A002
        OutputFormat | None, option("--format", panel=RUN, help="A table on a terminal and JSON otherwise by default.")
    ] = None,
    summary: Summary = None,
) -> None:
    """Measure a checkpoint on DATA/test (else DATA/val, else DATA itself): accuracy, loss, calibration.

    Example: sap eval model.sap.safetensors data/ --baseline model.safetensors
    """
    from sapcli.commands.evaluate import evaluate as command
    from sapcli.commands.line.inputs import Inputs

    inputs = Inputs(checkpoint, data, model, images, run)
    command(inputs, baseline, min_accuracy, format, output, summary)


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
    output_format: FormatOfResult = ResultFormat.TEXT,
) -> None:
    """Check a corrected checkpoint against what its metadata says of how it was made.

    Exits 1 where something does not hold.

    Example: sap verify model.sap.safetensors --input model.safetensors --bases bases.safetensors
    """
    from sapcli.commands.verify import verify as command

    command(checkpoint, original, bases or [], quiet, output_format)


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
    cross-entropy with the label, in nats), chance (that the label is wrong, from 0 to 1).

    Example: sap suspects model.sap.safetensors data/ --review review.html
    """
    from sapcli.commands.line.inputs import Inputs
    from sapcli.commands.suspects import suspects as command

    command(Inputs(checkpoint, data, model, images, run), options, output)


add_commands(app)
