"""The commands: parse, call, print. Torch is imported by what they call, never here, so that help comes at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sapcli import __version__
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
    ModelOptions,
    OutputOptions,
    RunOptions,
    SelectionOptions,
    Summary,
    Trusted,
    option,
)
from sapcli.commands.line.parsing import finite
from sapcli.commands.line.project_options import ProjectionOptions, RecordOptions
from sapcli.commands.line.settings_file import default_map, find_settings, named_settings
from sapcli.commands.line.suspects_options import SuspectsOptions
from sapcli.settings import OutputFormat, PlanFormat, ReportForm

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
cache_app = typer.Typer(no_args_is_help=True, help="See or empty the folder of intermediate artifacts.")
app.add_typer(cache_app, name="cache")

DEBUG = "SAPDEBUG"
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
) -> None:
    if debug:
        os.environ[DEBUG] = "1"
    # Help comes also when the file is damaged.
    if context.obj is not HELP:
        context.obj = find_settings(Path()) if config is None else named_settings(config)
        if context.obj is not None:
            context.default_map = default_map(context.obj, context.command)


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
    from sapcli.commands.line.inputs import Inputs
    from sapcli.commands.select import select as command

    command(Inputs(checkpoint, data, model, images, run), selection, output)


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
    from sapcli.commands.activations import activations as command
    from sapcli.commands.line.inputs import Inputs

    command(Inputs(checkpoint, data, model, images, run, all_rows), selection, trusted, output)


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
            callback=finite,
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
    from sapcli.commands.line.inputs import Inputs
    from sapcli.commands.project import Request
    from sapcli.commands.project import project as command

    request = Request(selection, trusted, projection, output, record, require_gain, dry_run)
    command(checkpoints, Inputs(checkpoints[0], data, model, images, run, all_rows), request)


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
) -> None:
    """Check a corrected checkpoint against what its metadata says of how it was made.

    Exits 1 where something does not hold.

    Example: sap verify model.sap.safetensors --input model.safetensors --bases bases.safetensors
    """
    from sapcli.commands.verify import verify as command

    command(checkpoint, original, bases or [], quiet)


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
    from sapcli.commands.report import report as command

    command(result, form, OutputOptions(output, force))


@app.command()
def config(
    context: typer.Context,
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="Whose options to show.")] = "project",
) -> None:
    """Show the settings that a command would run with, and where each comes from: ready for sap.toml.

    A flag goes before an environment variable (--batch-size: SAP_BATCH_SIZE), that before the file of `sap --config`,
    else sap.toml or [tool.sap] in pyproject.toml of the working folder, and that before the default. What is written,
    and which code runs, only a file says that --config names.

    Example: sap config project
    """
    from sapcli.commands.config import config as show

    show(context, command)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the data and the checkpoints go.")] = Path("demo"),
) -> None:
    """See a repair from start to end on scikit-learn's handwritten digits, in a minute."""
    from sapcli.commands.demo import run_demo

    run_demo(folder)


CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache-dir", metavar="DIR", envvar="SAP_CACHE", help="The folder, if not the usual one."),
]


@cache_app.command()
def info(cache_dir: CacheFolder = None) -> None:
    """Show where artifacts are kept, how many, and their size."""
    from sapcli.commands.cache import info as command

    command(cache_dir)


@cache_app.command()
def clear(cache_dir: CacheFolder = None) -> None:
    """Remove all artifacts; the next run makes them again."""
    from sapcli.commands.cache import clear as command

    command(cache_dir)
