"""What commands on a checkpoint and a data folder start from: the session, the samples and bases that are given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sapcli.activations.bases import Bases
from sapcli.activations.bases_file import read_bases
from sapcli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sapcli.commands.line import console
from sapcli.commands.line.options import DataOptions, ModelOptions, RunOptions, SelectionOptions
from sapcli.commands.line.output_check import Reads
from sapcli.commands.line.outputs import STDIO, check_writable, one_stdin
from sapcli.commands.line.settings_file import UsedSettings
from sapcli.datasets.dataset import Dataset
from sapcli.datasets.decoding import Scaling, header_size, longest_side
from sapcli.datasets.images import Images
from sapcli.datasets.labels.marked_samples import MarkedSamples, read_marked, read_mask
from sapcli.errors import DatasetError, UsageError
from sapcli.machine.cache import Cache
from sapcli.machine.events import Events
from sapcli.machine.parallel.joining import join
from sapcli.machine.parallel.membership import is_first
from sapcli.machine.parallel.shared_cache import SharedCache
from sapcli.machine.reading import read_input
from sapcli.machine.results import descriptor_of
from sapcli.repairs.selection import TrustedSet, marked_samples, parse_trusted
from sapcli.repairs.session import Samples, Session
from sapcli.settings import Exif

# So many files tell how large the images are, and from so much on it is said that they are enlarged.
_LOOKED_AT = 5
_MUCH_LARGER = 2
# Images of 16 bits whose highest value is below this have 12 bits at most.
_NEARLY_BLACK = 4096


@dataclass(frozen=True)
class Inputs:
    """The arguments and options that every command on a checkpoint and a data folder has."""

    checkpoint: str
    data: Path
    model: ModelOptions
    images: DataOptions
    run: RunOptions
    all_rows: bool = False
    keep_extra: bool = False

    def for_checkpoint(self, checkpoint: str) -> Inputs:
        """The same of another checkpoint."""
        return replace(self, checkpoint=checkpoint)

    def terminal(self) -> console.Terminal:
        """Where the run tells what it does: people on stderr, and programs on the descriptor that they asked for."""
        descriptor = self.run.progress_json
        first = is_first()
        events = None if descriptor is None or not first else Events(descriptor_of(descriptor))
        terminal = console.Terminal(self.run.quiet or not first, events)
        note_settings(terminal, self.run.settings)
        return terminal

    def reads(self, *checkpoints: Checkpoint, **more: str | Path | None) -> Reads:
        """What the command reads, to be held against what it writes.

        Args:
            checkpoints: The checkpoints, opened.
            more: Files and folders that other options name, by the options.
        """
        reads = Reads()
        for checkpoint in checkpoints:
            reads.add_checkpoint(checkpoint)
        reads.add_architecture(self.model.arch)
        reads.add_data(self.data)
        reads.add_file("the labels", self.images.labels)
        reads.add_file("the class map", self.images.class_map)
        reads.add_file("the settings file", self.run.settings.path)
        for option, source in more.items():
            reads.add_file(f"what --{option} names", source)
        return reads

    def writes(self) -> list[tuple[str, Path | None]]:
        """What the command may write beside its result, by the options that name it."""
        return [("--suggest-class-map", self.images.suggest_class_map)]

    def session(self, terminal: console.Terminal, validation: Path | None = None) -> Session:
        """The session that the inputs ask for; opens the checkpoint.

        Args:
            terminal: Told how far the stages are.
            validation: The validation images, where they are named.
        """
        if self.images.suggest_class_map is not None:
            check_writable(self.images.suggest_class_map, False, "--suggest-class-map")
        one_stdin(CHECKPOINT=self.checkpoint)
        settings = self.run.to_settings(self.images.strict_images, self.all_rows)
        ranks = join(settings.device)
        alone = ranks.world == 1
        folder = self.run.cache_dir
        return Session(
            open_checkpoint(self.checkpoint, weights=self.model.weights, keep_extra=self.keep_extra),
            self.images.to_source(self.data, validation),
            settings,
            terminal,
            Cache(folder, terminal) if alone else SharedCache(folder, terminal, ranks),
            self.model.to_source(),
            ranks=ranks,
        )


def note_settings(terminal: console.Terminal, settings: UsedSettings) -> None:
    """Say which settings come from a file, and which it may not set."""
    if settings.names:
        terminal.note(f"settings: {', '.join(settings.names)} from {settings.file}")
    if settings.left_out:
        terminal.warn(
            f"{settings.file} sets {', '.join(settings.left_out)}, which only a file that you name may set: left out"
            f" (`sap --config {settings.path} ...` names it)"
        )


def introduce(session: Session, dataset: Dataset) -> None:
    """Say what the checkpoint is and how it runs on the images of a dataset.

    Called once all has been checked that can be before an image is read, so that an error about it stands alone.
    """
    architecture = session.architecture
    note = session.progress.note
    note(f"model: {architecture.name} ({architecture.source}), {architecture.num_classes} classes")
    for passed_over in architecture.names_passed_over:
        session.progress.warn(f"{session.checkpoint.source}: {passed_over}")
    names = architecture.label_names
    if names is not None and names != tuple(sorted(names)):
        note(f"classes: in the order of {architecture.label_source}")
    note(f"preprocessing: {architecture.preprocessing} ({architecture.preprocessing.source})")
    note(f"device: {session.settings.device}")
    if architecture.usual_size:
        _warn_of_enlarging(session, dataset)
    _warn_of_turning(session, dataset)


def _warn_of_enlarging(session: Session, dataset: Dataset) -> None:
    """Tell of images far smaller than the network's usual input: it may have been trained on small ones."""
    _, height, width = session.architecture.preprocessing.input_size
    step = max(len(dataset.paths) // _LOOKED_AT, 1)
    sides = [longest_side(dataset.root / path) for path in dataset.paths[::step][:_LOOKED_AT]]
    largest = max((side for side in sides if side is not None), default=height)
    if min(height, width) > _MUCH_LARGER * largest:
        session.progress.warn(
            f"images of {largest} pixels are enlarged to {height}x{width}: where the network was trained on small ones,"
            f" give their size, as with --input-size {largest} --crop-pct 1"
        )


def _warn_of_turning(session: Session, dataset: Dataset) -> None:
    """Tell of a size that lies across all images that are looked at: height and width may have been exchanged."""
    channels, height, width = session.architecture.preprocessing.input_size
    if height == width:
        return
    step = max(len(dataset.paths) // _LOOKED_AT, 1)
    sizes = [header_size(dataset.root / path) for path in dataset.paths[::step][:_LOOKED_AT]]
    known = [size for size in sizes if size is not None]
    if known and all((wide - high) * (width - height) < 0 for wide, high in known):
        wide, high = known[0]
        session.progress.warn(
            f"images of {wide} x {high} pixels, width by height, are brought to {width} x {height}: an input size is"
            f" channels, height, width, so where height and width were exchanged, give --input-size"
            f" {channels},{width},{height}"
        )


class TrustedSource:
    """The trusted samples: given as a folder, as a list, or selected; chosen once, for every checkpoint that asks.

    Args:
        selection: How they are selected where they are not given.
        source: A file, a folder, `-` for stdin, or `None`.
    """

    def __init__(self, selection: SelectionOptions, source: str | None) -> None:
        self._selection = selection
        self._source = source
        self._chosen: TrustedSet | None = None
        self._chosen_from = ""

    def samples(self, session: Session) -> Samples:
        """The trusted samples, for the network of `session`.

        Raises:
            UsageError: They were chosen among other images, or under other classes.
        """
        if self._source is not None and self._source != STDIO and _is_folder(self._source):
            return session.folder_samples(Path(self._source))
        if self._chosen is None:
            select = session.select
            given = self._source
            self._chosen = select(self._selection.to_settings()) if given is None else self.given(session, given)
        if not self._chosen_from:
            self._chosen_from = session.training.fingerprint
        elif self._chosen_from != session.training.fingerprint:
            raise UsageError(
                f"{session.checkpoint.source} has other classes than the checkpoint before it", "repair them one by one"
            )
        return session.trusted_samples(self._chosen)

    def check(self, session: Session) -> None:
        """Read the list of samples, where one is given, so that what is wrong with it shows before any work."""
        source = self._source
        if source is not None and self._chosen is None and (source == STDIO or not _is_folder(source)):
            self._chosen = self.given(session, source)

    @staticmethod
    def given(session: Session, source: str, *, forget: bool = False) -> TrustedSet:
        """The list of samples in a file or on stdin.

        Args:
            session: What they are samples of.
            source: A file, or `-` for stdin.
            forget: Whether they are the forget set: of a list with a yes or no for each, those with wrong labels.
        """
        name = "stdin" if source == STDIO else source
        if Path(source).suffix.lower() == ".npy":
            return TrustedSource._marked(session, read_mask(Path(source), wrong=forget), name)
        try:
            content = read_input(source)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DatasetError(f"{source} cannot be read: {reason}", "name a list that exists") from error
        # Paths are bytes that need not be UTF-8; they are looked up as the file system gives them.
        text = content.decode("utf-8", "surrogateescape")
        # As `sap suspects -0` and `find -print0` write it, and no other list: a path may hold line breaks.
        lines = text.removesuffix("\0").split("\0") if text.endswith("\0") else text.split("\n")
        marked = read_marked(lines, name, wrong=forget)
        return (
            parse_trusted(lines, name, session.training)
            if marked is None
            else TrustedSource._marked(session, marked, name)
        )

    @staticmethod
    def _marked(session: Session, marked: MarkedSamples, name: str) -> TrustedSet:
        found = marked_samples(marked, name, session.training)
        session.progress.note(f"{name}: {len(found.samples):,} of {marked.total:,}: {marked.understood}")
        return found


def _is_folder(source: str) -> bool:
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):
        return False


def given_bases(source: str) -> Bases:
    """The bases in a file or on stdin."""
    return read_bases(source if source == STDIO else Path(source))


def tell_of_images(terminal: console.Terminal, images: Images) -> None:
    """Name the images that were left out, and say of how many the training may have seen something else."""
    for index, reason in sorted(images.unreadable.items()):
        terminal.warn(f"{images.dataset.paths[index]} is left out: {reason}")
    dataset = images.dataset
    where = dataset.where
    _tell_of_scaling(terminal, where, images)
    oriented = sum(treatment.oriented for treatment in images.treated.values())
    if oriented and images.preprocessing.exif is Exif.APPLY:
        terminal.note(f"{where}: {oriented:,} images were turned upright by their EXIF orientation")
    elif oriented:
        terminal.note(
            f"{where}: {oriented:,} images carry an EXIF orientation, which is not applied, as torchvision and timm do"
            " not (--exif apply)"
        )


def _tell_of_scaling(terminal: console.Terminal, where: Path, images: Images) -> None:
    """Say how many grey images of more than 8 bits were scaled how, and whether that is doubtful."""
    highest: dict[Scaling, list[float]] = {}
    for treatment in images.treated.values():
        if treatment.scaling is not None:
            highest.setdefault(treatment.scaling, []).append(treatment.highest)
    if not highest:
        return
    total = sum(map(len, highest.values()))
    ways = "; ".join(
        f"{len(values):,} {scaling.value} (the highest is {max(values):.6g})" for scaling, values in highest.items()
    )
    text = f"{where}: grey values of more than 8 bits of {total:,} images were brought to 0..255: {ways}"
    nearly_black = max(highest.get(Scaling.SIXTEEN_BITS, [65535])) < _NEARLY_BLACK
    if len(highest) > 1:
        terminal.warn(f"{text}; where all are meant alike, write them as 8 bits, as in the training")
    elif nearly_black:
        terminal.warn(
            f"{text}; they are nearly black: if they have fewer bits, write them as 8 bits, as in the training"
        )
    else:
        terminal.note(text)
