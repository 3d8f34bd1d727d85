"""The commands around a repair, which take no checkpoint: the report, the settings, the demo, the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sapcli.commands.line.options import DataArgument, FormatOfResult, OutputOptions
from sapcli.settings import NoiseKind, ReportForm, ResultFormat


def add_commands(app: typer.Typer) -> None:
    """Give the program these commands."""
    app.command(name="report")(_report)
    app.command(name="config")(_config)
    app.command(name="env")(_env)
    app.command(name="noise")(_noise)
    app.command(name="demo")(_demo)
    cache = typer.Typer(no_args_is_help=True, help="See or empty the folder of intermediate artifacts.")
    cache.command(name="info")(_info)
    cache.command(name="clear")(_clear)
    app.add_typer(cache, name="cache")


def _report(
    context: typer.Context,
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What `sap project --report` wrote.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE|-", help="Where to write: .html, .md or .json.")
    ] = None,
    form: Annotated[
        ReportForm | None, typer.Option("--format", help="By default what -o's ending says, and md on stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")] = False,
    model_card: Annotated[
        Path | None,
        typer.Option(
            "--model-card",
            metavar="README.md",
            help="Put what was repaired into this model card, in the place of what an earlier call put there; all else"
            " in it stays.",
        ),
    ] = None,
) -> None:
    """Render the report of a repair again from its JSON.

    Example: sap report repair.json -o repair.html
    """
    from sapcli.commands.report import report as command

    command(result, form, OutputOptions(output, force), model_card, context)


def _noise(
    context: typer.Context,
    data: DataArgument,
    kind: Annotated[
        NoiseKind,
        typer.Option(
            "--kind",
            help="symmetric: any other class; asymmetric: one that looks alike (--pair); hierarchical: another of its"
            " group (--group).",
        ),
    ],
    rate: Annotated[
        float, typer.Option("--rate", min=0.0, max=1.0, help="The share of each class's labels that becomes wrong.")
    ],
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            metavar="CLASS=TAKEN_FOR",
            help="Repeatable; by default CIFAR-10's usual pairs, or the next class.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="CLASS,CLASS,...", help="Classes taken for each other; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed makes other labels wrong.")] = 0,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="A CSV with path,label that has the right labels.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="The split of DATA; by default the training split.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE|-", help="Where the labels go, for --labels.")
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option("--truth", metavar="FILE", help="Where the right labels go, for `sap suspects --truth`."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing outputs.")] = False,
    output_format: FormatOfResult = ResultFormat.TEXT,
) -> None:
    """Make a share of the labels wrong on purpose, for studies of label noise; no image is changed.

    Writes a label file for --labels, with a line for each training image.

    Example: sap noise data/ --kind symmetric --rate 0.25 -o noisy.csv --truth truth.csv
    """
    from sapcli.commands.around.noise import NoiseRequest
    from sapcli.commands.around.noise import noise as command

    chosen = tuple(pair or ()), tuple(group or ())
    request = NoiseRequest(kind, rate, *chosen, seed, truth, labels, split, output_format)
    command(data, request, OutputOptions(output, force), context)


def _config(
    context: typer.Context,
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="Whose options to show.")] = "project",
    output_format: FormatOfResult = ResultFormat.TEXT,
) -> None:
    """Show the settings that a command would run with, and where each comes from: ready for sap.toml.

    A flag goes before an environment variable (--batch-size: SAP_BATCH_SIZE), that before the file of `sap --config`,
    else sap.toml or [tool.sap] in pyproject.toml of the working folder, and that before the default. What is written,
    and which code runs, only a file says that --config names.

    Example: sap config project
    """
    from sapcli.commands.around.config import config as show

    show(context, command, output_format)


def _env(context: typer.Context, output_format: FormatOfResult = ResultFormat.TEXT) -> None:
    """Show what there is here, for a report of a fault: versions, devices and how fast they are, the cache, settings.

    Of settings and variables only the names are told.

    Example: sap env
    """
    from sapcli.commands.around.env import env as show

    show(context, output_format)


def _demo(
    folder: Annotated[Path, typer.Argument(help="Where the data and the checkpoints go.")] = Path("demo"),
    output_format: FormatOfResult = ResultFormat.TEXT,
) -> None:
    """See a repair from start to end on scikit-learn's handwritten digits, in a minute."""
    from sapcli.commands.demo import run_demo

    run_demo(folder, output_format)


_CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache-dir", metavar="DIR", envvar="SAP_CACHE", help="The folder, if not the usual one."),
]


def _info(cache_dir: _CacheFolder = None, output_format: FormatOfResult = ResultFormat.TEXT) -> None:
    """Show where artifacts are kept, how many, and their size."""
    from sapcli.commands.around.cache import info as command

    command(cache_dir, output_format)


def _clear(cache_dir: _CacheFolder = None, output_format: FormatOfResult = ResultFormat.TEXT) -> None:
    """Remove all artifacts; the next run makes them again."""
    from sapcli.commands.around.cache import clear as command

    command(cache_dir, output_format)
