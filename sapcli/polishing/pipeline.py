"""A polish: the stages in order, from a checkpoint and its data to the model that is written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from torch import Tensor

from sapcli.activations.scoring import Outcomes
from sapcli.datasets.contents import contents_of, find_contents
from sapcli.errors import UsageError
from sapcli.machine.device import float16_dtype, usual_batch_size
from sapcli.polishing.augmentation import Augmentation
from sapcli.polishing.course import Course
from sapcli.polishing.flips import LOOKED_AT, FlipAnswers, look_at_flips
from sapcli.polishing.judging import Judgement, Result, by_signs, by_validation
from sapcli.polishing.kept import Prepared, Snapshots, read_prepared, write_prepared
from sapcli.polishing.pixels import Pixels
from sapcli.polishing.recipe import Recipe, recipe_for, trainable
from sapcli.polishing.targets import as_given, blend_with_answers
from sapcli.polishing.training import Task, Training
from sapcli.polishing.weights import Weights, names_at_rest
from sapcli.repairs.batchnorm import BATCHNORM_IMAGES, batchnorm_layers, may_reestimate, reestimate
from sapcli.repairs.evidence.evaluation import Gain, Metrics, measure, paired_gain
from sapcli.repairs.evidence.weak_points import guessing
from sapcli.repairs.pipeline import run_repair
from sapcli.repairs.selection import TrustedSet
from sapcli.repairs.session import Session
from sapcli.repairs.shuffling import shuffled
from sapcli.settings import PolishSettings, ProjectionSettings, SelectionSettings

# Held out before the first epoch where there are no validation images: half a per cent, but no fewer than these.
_HELD_OUT, _FEWEST_HELD_OUT = 0.005, 200
# Of few images, no more than this part is held out.
_MOST_HELD_OUT = 0.05
# How many samples a repair trusts by default, and of few images no more than this part.
_TRUSTED, _TRUSTED_PART = 1000, 0.25
_FEW_VALIDATION_IMAGES = 200
_HELD_OUT_SEED = 1


@dataclass(frozen=True)
class Polish:
    """What a polish did.

    Attributes:
        judgement: Which model is written, and why.
        recipe: The numbers of the training.
        course: What became of it.
        settings: What the user said.
        augmentation: How images were varied, in words.
        flip: Whether they were mirrored.
        repaired: Whether training began with a model that was repaired first.
        alpha: Of that repair.
        trusted_images: The contents of the images that it trusted, as text.
        trained: How many images it was trained on.
        held_out: How many were held out.
        validation: How many validation images there were.
        before: The metrics on the validation images of the model as it was; `None` without any.
        after: The same of the model that is written.
        gain: The difference, from paired outcomes.
        outcomes_before: What the model as it was made of the validation images; `None` without any.
        outcomes_after: The same of the model that is written.
        weights: The tensors that are written in the place of the checkpoint's, by entry.
        tensors: The same by their names in the network, and those too that the checkpoint has no place for.
        network: Puts them into the network, and those of the checkpoint back.
        weak_points: What is to be said against the evidence.
    """

    judgement: Judgement
    recipe: Recipe
    course: Course
    settings: PolishSettings
    augmentation: str
    flip: bool
    repaired: bool
    alpha: float | None
    trusted_images: str
    trained: int
    held_out: int
    validation: int
    weights: Mapping[str, Tensor] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    network: Weights = field(repr=False)
    before: Metrics | None = None
    after: Metrics | None = None
    gain: Gain | None = None
    outcomes_before: Outcomes | None = None
    outcomes_after: Outcomes | None = None
    weak_points: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the checkpoint that is written differs from the input."""
        return self.judgement.result is not Result.UNCHANGED

    def replacements(self, written_names: Mapping[str, str] | None = None) -> Mapping[str, Tensor]:
        """What the polished checkpoint holds instead, under the names that it has there.

        Args:
            written_names: From these names to the checkpoint's entries; they are the same where `None`.
        """
        if written_names is None:
            return self.weights
        return {name: self.weights[entry] for name, entry in written_names.items() if entry in self.weights}


def check_polish(session: Session, settings: PolishSettings) -> None:
    """Make sure, before an image is read, that there is something to train and a way to vary the images.

    Raises:
        UsageError: There is not.
    """
    trainable(
        session.classifier.module, settings, list(session.classifier.loaded.kept), session.architecture.num_classes
    )
    Augmentation(settings.augment, False, session.architecture.preprocessing.input_size)
    recipe_for(session.classifier.module, len(session.training.paths), settings, session.settings.batch_size)


def run_polish(session: Session, settings: PolishSettings) -> Polish:
    """Train a model on, and leave the network as the judgement says.

    Args:
        session: The checkpoint and the data.
        settings: How it is trained.

    Raises:
        UsageError: There is nothing to train, or to train on.
    """
    return _Run(session, settings).polish()


class _Run:
    """One polish."""

    def __init__(self, session: Session, settings: PolishSettings) -> None:
        self._began = time.monotonic()
        self._session = session
        self._settings = settings
        self._weights = Weights(session.classifier, session.checkpoint)

    def polish(self) -> Polish:
        """All of it."""
        session, settings = self._session, self._settings
        # With the network as it was: what the session keeps is of that.
        given = None
        session.check_forward(session.training, stop=True)
        if session.validation_images is not None and session.validation is not None:
            every = range(len(session.validation.paths))
            given = session.validation_outcomes(session.validation_images, every)
        prepared = self._prepared()
        self._weights.put(prepared.weights)
        names = trainable(
            session.classifier.module, settings, list(session.classifier.loaded.kept), session.architecture.num_classes
        )
        recipe = recipe_for(session.classifier.module, len(prepared.indices), settings, session.settings.batch_size)
        recipe = self._divisible(recipe, len(prepared.indices))
        augmentation = Augmentation(settings.augment, prepared.flip, session.architecture.preprocessing.input_size)
        session.progress.note(f"training: {len(prepared.indices):,} images, {recipe}, augmentation: {augmentation}")
        course = self._train(prepared, names, recipe, augmentation)
        polish = Polish(
            judgement=Judgement(Result.UNCHANGED, "it is not judged yet"),
            recipe=recipe,
            course=course,
            settings=settings,
            augmentation=str(augmentation),
            flip=prepared.flip,
            repaired=bool(prepared.weights),
            alpha=prepared.alpha,
            trusted_images=prepared.trusted_images,
            trained=len(prepared.indices),
            held_out=len(prepared.held_out),
            validation=0 if given is None else len(given),
            weights={},
            tensors={},
            network=self._weights,
        )
        return self._judged(polish, prepared, names, given)

    def _divisible(self, recipe: Recipe, images: int) -> Recipe:
        """Batches that all processes have an even part of."""
        count = self._session.ranks.world
        if count == 1:
            return recipe
        size = max(recipe.batch_size // (2 * count), 1) * 2 * count
        if images < size:
            raise UsageError(f"{images} training images are too few for {count} processes", "start fewer of them")
        return replace(recipe, batch_size=size, steps=recipe.epochs * (images // size))

    @property
    def _parts(self) -> dict[str, object]:
        """What the start depends on."""
        session, settings = self._session, self._settings
        return session.key | {
            "seed": session.settings.seed,
            "dtype": str(session.fast_dtype),
            "validation": "" if session.validation is None else session.validation.fingerprint,
            "labels": "given" if settings.labels_as_given else "by Bayes' rule",
            "repair_first": settings.repair_first,
            "flip": settings.flip,
        }

    def _prepared(self) -> Prepared:
        return self._session.cache.fetch("start", self._parts, self._prepare, read_prepared, write_prepared)

    def _prepare(self) -> Prepared:
        """Repair the model, look at mirrored images, and blend the labels with its answers."""
        session, settings = self._session, self._settings
        images = session.training_images
        count = len(session.training.paths)
        trusted = session.select(SelectionSettings(max(min(_TRUSTED, int(_TRUSTED_PART * count)), 1)))
        alpha, trusted_images = None, ""
        if settings.repair_first and session.checkpoint.metadata.get("sap.repaired") == "true":
            session.progress.note("the model was repaired before: training begins with it as it is")
        elif settings.repair_first:
            alpha, trusted_images = self._repair(trusted)
        flip = settings.flip
        if flip is None:
            looked_at = shuffled(trusted.indices, session.settings.seed)[:LOOKED_AT]
            # They are few: the first process looks at all of them.
            answers = session.ranks.from_first(
                lambda: look_at_flips(session.classifier, images, looked_at, session.progress)
            )
            flip = answers.keep_the_class
            session.progress.note(_about_flips(answers, session.training.classes))
        if settings.labels_as_given:
            targets = as_given(session.training.labels, session.architecture.num_classes)
        else:
            targets = blend_with_answers(session.classifier, images, session.progress, session.ranks)
        readable = [index for index in range(count) if index not in images.unreadable]
        indices, held_out = self._divided(readable)
        return Prepared(self._weights.differing(), targets, indices, held_out, flip, alpha, trusted_images)

    def _repair(self, trusted: TrustedSet) -> tuple[float | None, str]:
        """Repair the network where it can be: its alpha, and the contents of the trusted images."""
        session = self._session
        samples = session.trusted_samples(trusted)
        bases = session.bases(samples)
        try:
            repair, _ = run_repair(session, ProjectionSettings(), bases, samples)
        except UsageError as error:
            session.progress.warn(f"the model is not repaired first: {error.message}")
            return None, ""
        if repair.choice.alpha is None:
            session.progress.note("repair: nothing beats the unchanged model, so training begins with that")
            return None, ""
        gain = "" if repair.gain is None else f", {repair.gain.points:+.2f} points on the validation images"
        session.progress.note(f"repair: alpha {repair.choice.alpha:g}{gain}; training begins with the repaired model")
        return repair.choice.alpha, bases.facts.contents

    def _divided(self, readable: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What is trained on, and what is held out; no copy of a validation image is trained on."""
        session = self._session
        if session.validation is not None:
            contents = contents_of(session.validation, range(len(session.validation.paths)))
            copies = find_contents(session.training, frozenset(contents.values()))
            if copies:
                session.progress.note(f"{len(copies):,} training images are validation images too and are left out")
            return tuple(index for index in readable if index not in copies), ()
        count = min(max(int(_HELD_OUT * len(readable)), _FEWEST_HELD_OUT), int(_MOST_HELD_OUT * len(readable)))
        order = shuffled(readable, session.settings.seed + _HELD_OUT_SEED)
        return tuple(sorted(order[count:])), tuple(sorted(order[:count]))

    def _train(self, prepared: Prepared, names: Sequence[str], recipe: Recipe, augmentation: Augmentation) -> Course:
        session, settings, ranks = self._session, self._settings, self._session.ranks
        classifier, device = session.classifier, session.settings.device
        classifier.try_layout()
        _, height, width = session.architecture.preprocessing.input_size
        dtype = session.fast_dtype or float16_dtype(device, session.settings.precision, self._weights.count)
        seconds = None
        if settings.max_minutes is not None:
            seconds = max(60 * settings.max_minutes - (time.monotonic() - self._began), 1.0)
        pixels = Pixels(session.training_images, prepared.indices, device, session.progress)
        task = Task(
            classifier=classifier,
            names=names,
            pixels=pixels,
            targets=prepared.targets.to(device),
            indices=prepared.indices,
            augmentation=augmentation,
            recipe=recipe,
            seed=session.settings.seed,
            dtype=dtype,
            portion=usual_batch_size(device, height, width),
            seconds=seconds,
        )
        parts = {"settings": asdict(settings), "recipe": asdict(recipe), "training": str(dtype), "ranks": ranks.world}
        snapshots = Snapshots(session.cache.own, self._parts | parts)
        last = ranks.from_first(snapshots.last)
        if last is not None:
            session.progress.note(f"training goes on after epoch {len(last.numbers['epochs'])}, from the cache")
        keep = snapshots.save if ranks.is_first else lambda _snapshot: None
        return Training(task, session.progress, ranks, keep).run(last)

    def _judged(self, polish: Polish, prepared: Prepared, names: Sequence[str], given: Outcomes | None) -> Polish:
        """Measure the candidates, choose, and put the choice into the network."""
        session = self._session
        polished = self._finished(prepared, names) if polish.course.settled else None
        images, indices = session.training_images, list(prepared.held_out)
        if session.validation_images is not None and session.validation is not None:
            images, indices = session.validation_images, list(range(len(session.validation.paths)))

        def outcomes(weights: dict[str, Tensor], name: str) -> Outcomes:
            self._weights.put(weights)
            return session.score(images, f"judging the {name} model", indices, exact=False)

        of_polished = None if polished is None else outcomes(polished, "polished")
        repaired = dict(prepared.weights)
        of_repaired = outcomes(repaired, "repaired") if repaired else None
        if given is not None:
            judgement = by_validation(given, of_repaired, of_polished)
        else:
            losses = [epoch.loss for epoch in polish.course.epochs] or [0.0]
            of_given = outcomes({}, "given")
            judgement = by_signs(of_given, of_repaired, of_polished, losses[0], losses[-1])
        chosen = {Result.POLISHED: polished or {}, Result.REPAIRED: repaired, Result.UNCHANGED: {}}[judgement.result]
        self._weights.put(chosen)
        polish = replace(polish, judgement=judgement, weights=self._weights.replacements(chosen), tensors=chosen)
        if given is None:
            return replace(polish, weak_points=_weak_points(polish))
        after = {Result.POLISHED: of_polished, Result.REPAIRED: of_repaired}.get(judgement.result) or given
        classes = session.training.classes
        polish = replace(
            polish,
            before=measure(given, classes),
            after=measure(after, classes),
            gain=paired_gain(given, after),
            outcomes_before=given,
            outcomes_after=after,
        )
        return replace(polish, weak_points=(*guessing(given.accuracy, len(classes)), *_weak_points(polish)))

    def _finished(self, prepared: Prepared, names: Sequence[str]) -> dict[str, Tensor] | None:
        """The trained weights as they are written, BatchNorm's statistics those of the average; none if not finite."""
        session = self._session
        classifier = session.classifier
        if not self._weights.round():
            return None
        layers = batchnorm_layers(classifier.module)
        at_rest = names_at_rest([name for name, _ in classifier.module.named_parameters()], names)
        if may_reestimate(classifier) and not layers.keys() <= at_rest:
            indices = shuffled(prepared.indices, session.settings.seed)[:BATCHNORM_IMAGES]
            reestimate(
                classifier,
                session.training_images,
                indices,
                session.progress,
                "re-estimating BatchNorm",
                skip=at_rest,
                ranks=session.ranks,
            )
        return self._weights.differing() if self._weights.round() else None


def _about_flips(answers: FlipAnswers, classes: Sequence[str]) -> str:
    """What was found of mirrored images, in a line."""
    found = (
        f"{answers.kept:.0%} of {answers.images} believable images keep their class when they are mirrored, and"
        f" {answers.shifted:.0%} when they are shifted"
    )
    if answers.keep_the_class:
        return f"flips: {found}, so images are flipped (--no-flip)"
    if answers.worst is not None:
        found += f"; of {classes[answers.worst]} {answers.worst_kept:.0%} and {answers.worst_shifted:.0%}"
    return f"flips: {found}, so none is flipped (--flip)"


def _weak_points(polish: Polish) -> tuple[str, ...]:
    points = []
    if not polish.validation:
        points.append("there are no validation images: the gain is not measured, only that nothing was ruined")
    elif polish.validation < _FEW_VALIDATION_IMAGES:
        points.append(
            f"there are only {polish.validation} validation images: less than {_FEW_VALIDATION_IMAGES} tell little"
        )
    if polish.gain is not None and polish.changed and polish.gain.low <= 0 <= polish.gain.high:
        points.append("the interval of the gain contains 0: it may be chance")
    if not polish.course.settled:
        points.append("training did not come to an end at any rate that was tried")
    return tuple(points)
