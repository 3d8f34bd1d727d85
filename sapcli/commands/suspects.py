"""`sap suspects`: the training samples whose labels a repaired model contradicts."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sapcli.activations.scoring import Outcomes
from sapcli.activations.views import Views
from sapcli.commands.line.console import is_exact
from sapcli.commands.line.inputs import Inputs, introduce, tell_of_images
from sapcli.commands.line.next_step import same_inputs, tell_next
from sapcli.commands.line.options import OutputOptions
from sapcli.commands.line.output_check import check_outputs
from sapcli.commands.line.outputs import check_writable, destination_file, open_output, write_text
from sapcli.commands.line.suspects_options import SuspectsOptions
from sapcli.datasets.dataset import Dataset
from sapcli.datasets.labels.decisions import read_decided
from sapcli.errors import SapError, UsageError
from sapcli.machine.files import atomic_write
from sapcli.machine.text import printable
from sapcli.repairs.evidence.label_chances import LabelChances, doubts_in_words, label_chances
from sapcli.repairs.evidence.look_alikes import Copies, copies_by_content, copies_by_look, merged
from sapcli.repairs.evidence.suspects import (
    Detection,
    Suspect,
    by_suspicion,
    corrected_labels,
    label_file_of,
    link_corrected,
    measure_detection,
    rank_suspects,
    read_truth,
    render_labels,
    render_suspects,
    suspects_in,
    without_most_of_a_class,
)
from sapcli.repairs.evidence.weak_points import guessing
from sapcli.repairs.session import Session
from sapcli.settings import LabelForm, SuspectsFormat

_PAIRS_NAMED = 3


def suspects(inputs: Inputs, options: SuspectsOptions, output: OutputOptions) -> None:
    """`sap suspects`."""
    destination = destination_file(output, None)
    pages = [("--html", options.html), ("--review", options.review), ("--estimate", options.estimate)]
    for option, path in pages:
        if path is not None:
            check_writable(path, output.force, option)
    correction = None if options.apply is None else _CorrectedLabels.of(options, output.force)
    terminal = inputs.terminal()
    session = inputs.session(terminal)
    dataset = session.training
    written = None if correction is None else correction.path
    outputs = [("-o", destination), *pages, ("--apply-to", written), *inputs.writes()]
    if correction is not None and correction.form is LabelForm.LINKS:
        correction.check_outside(dataset.root)
        if dataset.contained:
            raise UsageError(f"the images of {dataset.root} lie inside of files", "use --apply csv instead of links")
    check_outputs(outputs, inputs.reads(session.checkpoint, truth=options.truth))
    truth = None if options.truth is None else read_truth(options.truth, dataset)
    decided = _decided(session)
    if options.review is not None and len(dataset.classes) < 2:
        raise UsageError("there is nothing to decide with a single class", "leave out --review")
    introduce(session, dataset)
    if session.checkpoint.metadata.get("sap.repaired") != "true":
        terminal.warn(
            f"{session.checkpoint.source} is not marked as repaired, and a model that memorised its labels contradicts"
            " few of them; run `sap project` first"
        )
    views = session.views(session.training_images, "scoring training images")
    outcomes = views.outcomes
    session.check_class_order(session.training_images, outcomes)
    tell_of_images(terminal, session.training_images)
    for point in guessing(outcomes.accuracy, len(dataset.classes)):
        terminal.warn(f"{session.checkpoint.source}: {point}")
    chances = _chances(session, views)
    rows = _rows(session, outcomes, options, decided)
    copies = _copies(session, views, rows if options.review is not None else rows[:0])
    found = suspects_in(dataset, outcomes, rows, chances.wrong, copies)
    if not session.ranks.is_first:
        return
    if options.null:
        with open_output(destination, output.force) as handle:
            handle.write(b"".join(os.fsencode(suspect.path) + b"\0" for suspect in found))
    else:
        exact = destination is not None or is_exact()
        text = render_suspects(found, options.format, exact=exact)
        write_text(
            destination, text, output.force, is_json=options.format in (SuspectsFormat.JSONL, SuspectsFormat.JSON)
        )
    if options.html is not None:
        from sapcli.reports.pages import contact_sheet

        page = contact_sheet(dataset.root, session.checkpoint.source, len(outcomes), found)
        with atomic_write(options.html, replace=output.force) as handle:
            handle.write(page.encode())
        terminal.note(f"contact sheet: {options.html}")
    if options.review is not None:
        _write_review(session, views, chances, rows, copies, options.review, replace=output.force)
    if options.estimate is not None:
        from sapcli.reports.review_items import estimate_as_json

        with atomic_write(options.estimate, replace=output.force) as handle:
            handle.write((json.dumps(estimate_as_json(chances, dataset, len(outcomes)), indent=2) + "\n").encode())
        terminal.note(f"estimate: {options.estimate}")
    if correction is not None:
        changed = [suspect for suspect in found if suspect.suggested != suspect.given]
        correction.write(dataset, tuple(changed))
        terminal.note(f"corrected labels: {correction.path}")
    words = ("--html", "suspects.html") if options.html is None else ("--apply", "csv")
    if found and (options.html is None or correction is None):
        given = (inputs.checkpoint, inputs.data, *words)
        tell_next(terminal, "suspects", *given, options=same_inputs(inputs, repaired=True))
    if truth is not None:
        contradicted = rank_suspects(dataset, outcomes, options.count, options.min_score) if options.every else found
        terminal.rows("against the truth", _detection_rows(measure_detection(dataset, outcomes, contradicted, truth)))


def _decided(session: Session) -> frozenset[int]:
    """The samples about which a person has decided already, as the label file says."""
    file = label_file_of(session.source)
    # What came through a pipe is gone.
    if file is None or not file.is_file():
        return frozenset()
    paths = read_decided(file)
    return frozenset(index for index, path in enumerate(session.training.paths) if path in paths)


def _chances(session: Session, views: Views) -> LabelChances:
    """How likely each label is wrong, and what is to be said of it."""
    chances = label_chances(views, _held_out(session), seed=session.settings.seed)
    terminal, count, share = session.progress, len(views.outcomes), chances.share
    classes = session.training.classes
    terminal.note(
        f"about {share.value:.1%} of {count:,} labels are wrong [{share.low:.1%}, {share.high:.1%}], estimated from"
        f" {chances.source}"
    )
    if chances.pairs:
        often = "; ".join(
            f"{classes[pair.true]} labeled {classes[pair.given]}, about {pair.count.value:,.0f}"
            f" [{pair.count.low:,.0f}, {pair.count.high:,.0f}]"
            for pair in chances.pairs[:_PAIRS_NAMED]
        )
        terminal.note(f"most often: {often}")
    if chances.doubts:
        # That there is nothing to calibrate on is no fault.
        say = terminal.warn if chances.pairs else terminal.note
        say(doubts_in_words(chances.doubts))
    return chances


def _held_out(session: Session) -> Views | None:
    """What the network makes of the validation images, where there are any that can be used."""
    try:
        images = session.validation_images
        return None if images is None else session.views(images, "looking at held-out images")
    except SapError as error:
        session.progress.warn(f"the validation images are not used: {error.message}")
        return None


def _rows(session: Session, outcomes: Outcomes, options: SuspectsOptions, decided: frozenset[int]) -> Tensor:
    """The rows of the samples that are listed, the most suspicious first, and what is said of the others."""
    terminal, dataset = session.progress, session.training
    suspicious = outcomes.losses >= options.min_score
    if options.every:
        return by_suspicion(outcomes, suspicious)[: options.count]
    contradicted = ~outcomes.correct
    judged = torch.tensor([index in decided for index in outcomes.indices.tolist()], dtype=torch.bool)
    if bool(judged.any()):
        file = label_file_of(session.source)
        terminal.note(f"{int(judged.sum()):,} labels were decided by a person ({file}), and are not listed")
    rows, left_out = without_most_of_a_class(
        outcomes, by_suspicion(outcomes, contradicted & suspicious & ~judged), options.most_of_class
    )
    for label, count in left_out.items():
        size = int((outcomes.labels == label).sum())
        terminal.warn(
            f"{printable(dataset.classes[label])!r}: only the {int(options.most_of_class * size):,} most suspicious of"
            f" {size:,} images are listed, {count:,} more are contradicted (--most-of-class)"
        )
    rows = rows[: options.count]
    total = int(contradicted.sum())
    listed = "" if len(rows) == total else f", {len(rows):,} of them listed"
    terminal.note(f"{total:,} of {len(outcomes):,} labels are contradicted{listed}")
    return rows


def _copies(session: Session, views: Views, rows: Tensor) -> Copies:
    """The samples that show the same picture under different labels; by what they show, only those in some rows."""
    terminal, dataset = session.progress, session.training
    by_content = copies_by_content(dataset)
    by_look = copies_by_look(views, rows.tolist()) if len(rows) else {}
    if by_look is None:
        terminal.note("near-duplicates are looked for by content alone: there are too many images to compare")
    copies = merged(by_content, by_look or {})
    for what, found in (("the same content", by_content), ("nearly the same look", by_look or {})):
        if found:
            once = [(index, other) for index, others in found.items() for other in others if index < other]
            pairs = [f"{dataset.paths[index]} and {dataset.paths[other]}" for index, other in once]
            named = "; ".join(pairs[:_PAIRS_NAMED]) + ("; ..." if len(pairs) > _PAIRS_NAMED else "")
            terminal.warn(f"{len(found):,} images have {what} as others with another label: {named}")
    return copies


def _write_review(
    session: Session, views: Views, chances: LabelChances, rows: Tensor, copies: Copies, place: Path, *, replace: bool
) -> None:
    """Write the page on which a person decides."""
    from sapcli.reports.review_items import MOST_ON_PAGE, can_be_written, repeated_labels, review_items
    from sapcli.reports.review_page import ReviewTexts, review_page

    terminal, dataset, outcomes = session.progress, session.training, views.outcomes
    written = [row for row in rows.tolist() if can_be_written(dataset.paths[int(outcomes.indices[row])])]
    if len(written) < len(rows):
        terminal.warn(f"{len(rows) - len(written):,} images are not on the page: their names are not UTF-8")
    shown = torch.tensor(written[:MOST_ON_PAGE], dtype=torch.int64)
    if len(shown) < len(written):
        terminal.note(f"the page has the {len(shown):,} most suspicious of {len(written):,} images")
    share = chances.share
    listed = f"{len(rows):,} of {len(outcomes):,} labels are listed"
    texts = ReviewTexts(
        session.checkpoint.source,
        listed + (f", and the {len(shown):,} most suspicious are here." if len(shown) < len(rows) else "."),
        f"About {share.value:.1%} of all labels are wrong [{share.low:.1%}, {share.high:.1%}].",
        (doubts_in_words(chances.doubts),) if chances.doubts else (),
        not chances.doubts,
    )
    with session.progress.stage("making the page", None):
        items = review_items(views, chances, shown, len(dataset.classes), copies)
        others = repeated_labels(session, [item.index for item in items])
        page = review_page(dataset, items, texts, place, others)
    with atomic_write(place, replace=replace) as handle:
        handle.write(page.encode())
    terminal.note(f"review page: {place}; what it exports is for --labels")


@dataclass(frozen=True)
class _CorrectedLabels:
    """Where the labels go with the suggestions in the suspects' place."""

    form: LabelForm
    path: Path
    replace: bool

    @classmethod
    def of(cls, options: SuspectsOptions, force: bool) -> _CorrectedLabels:
        """What the options ask for, made sure of before the work begins."""
        assert options.apply is not None
        if options.apply is LabelForm.LINKS:
            return cls(options.apply, options.apply_to or Path("corrected"), force)
        path = options.apply_to or Path("corrected.csv")
        check_writable(path, force, "--apply-to")
        return cls(options.apply, path, force)

    def check_outside(self, data: Path) -> None:
        """Make sure that the links do not become images of the data folder."""
        if Path(os.path.realpath(self.path)).is_relative_to(os.path.realpath(data)):
            raise UsageError(f"{self.path} lies in the data folder {data}", "name another folder with --apply-to")

    def write(self, dataset: Dataset, found: tuple[Suspect, ...]) -> None:
        """Write them."""
        labels = corrected_labels(dataset, found)
        if self.form is LabelForm.LINKS:
            link_corrected(dataset, labels, self.path)
            return
        with atomic_write(self.path, replace=self.replace) as handle:
            handle.write(render_labels(labels).encode("utf-8", "surrogateescape"))


def _detection_rows(detection: Detection) -> list[tuple[str, str]]:
    return [
        ("wrong labels", f"{detection.wrong} of {detection.samples}"),
        ("precision", f"{detection.precision:.3f}"),
        ("recall", f"{detection.recall:.3f} ({detection.found} found)"),
        ("area under ROC", f"{detection.area:.4f}"),
    ]
