"""Values of alpha, tried one after the other: the network is corrected with each and run over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sapcli.activations.scoring import Outcomes
from sapcli.datasets.images import Images
from sapcli.repairs.alpha_search import (
    FIRST_LOOK,
    WORTH_A_FIRST_LOOK,
    Choice,
    Evidence,
    FirstLooks,
    best_on_validation,
    knee,
)
from sapcli.repairs.batchnorm import FEW_BATCHNORM_IMAGES
from sapcli.repairs.correction import Correction
from sapcli.repairs.evidence.evaluation import convincing_gain, discordant
from sapcli.repairs.evidence.unfamiliar_views import FEWEST_IMAGES, Comparison, View, compare
from sapcli.repairs.session import Samples, Session
from sapcli.repairs.shuffling import shuffled


class Trials:
    """Tries values of alpha on a network, which is left with the weights of the last one.

    Args:
        session: The checkpoint and the data.
        correction: Puts the weights of an alpha into the network.
        energies: Whether alpha is a fraction of the energy, as for `gpm`.
        advance: Called with 1 for each value of alpha that is tried for the first time.
    """

    def __init__(
        self, session: Session, correction: Correction, energies: bool, advance: Callable[[int], None]
    ) -> None:
        self._session = session
        self._correction = correction
        self._energies = energies
        self._advance = advance
        self._tried: set[float] = set()

    def _apply(self, alpha: float, batchnorm_images: int | None = None) -> None:
        if alpha not in self._tried:
            self._advance(1)
        self._tried.add(alpha)
        self._correction.apply(alpha, batchnorm_images)

    def knee(self, trusted: Samples) -> Choice:
        """The choice on the trusted samples alone."""
        session = self._session
        before = session.score(trusted.images, "scoring the trusted samples", trusted.indices, exact=False)
        right = before.indices[before.correct].tolist()
        if not right:
            return Choice(None, Evidence.KNEE, ())

        def kept_right(alpha: float) -> float:
            self._apply(alpha)
            return session.score(trusted.images, f"trying alpha {alpha:g}", right, exact=False).accuracy

        return replace(knee(kept_right, self._energies), samples=len(right))

    def on_strange_views(self, alpha: float, trusted: Samples) -> Comparison | None:
        """The network before and after a repair on training images that are not trusted, shown as never before.

        `None` where these are too few to tell anything.
        """
        session, seed = self._session, self._session.settings.seed
        images = session.training_images
        same = trusted.images.dataset is session.training
        taken = frozenset(trusted.indices) if same else frozenset[int]()
        indices = [index for index in shuffled(range(len(session.training.paths)), seed) if index not in taken]
        if len(indices) < FEWEST_IMAGES:
            return None

        def score(view: View | None, chosen: Sequence[int]) -> Outcomes:
            session.classifier.view = view
            try:
                return session.score(images, "comparing on strange views", chosen, exact=False)
            finally:
                session.classifier.view = None

        def repaired(view: View, chosen: Sequence[int]) -> Outcomes:
            self._apply(alpha)
            return score(view, chosen)

        self._correction.restore()
        return compare(
            score, repaired, indices or range(len(session.training.paths)), len(session.training.paths), seed
        )

    def on_validation(self, images: Images, indices: Sequence[int]) -> ValidationTrials:
        """The trials on validation images."""
        return ValidationTrials(self._session, self._apply, self._energies, images, indices)


class ValidationTrials:
    """Trials that are judged on validation images.

    Args:
        session: The checkpoint and the data.
        apply: Puts the weights of an alpha into the network, with so many images for the BatchNorm statistics.
        energies: Whether alpha is a fraction of the energy, as for `gpm`.
        images: The validation images.
        indices: Which of them.

    Attributes:
        outcomes: What the network made of all these images, for every alpha that was tried on them.
    """

    def __init__(
        self,
        session: Session,
        apply: Callable[[float, int | None], None],
        energies: bool,
        images: Images,
        indices: Sequence[int],
    ) -> None:
        self._session = session
        self._apply = apply
        self._energies = energies
        self._images = images
        self._indices = indices
        self._first_indices = shuffled(indices, session.settings.seed)[:FIRST_LOOK]
        self.outcomes: dict[float, Outcomes] = {}

    def accuracy(self, alpha: float) -> float:
        """The accuracy with one alpha on all images, in [0, 1]."""
        self._apply(alpha, None)
        stage = f"validating alpha {alpha:g}"
        self.outcomes[alpha] = self._session.score(self._images, stage, self._indices, exact=False)
        return self.outcomes[alpha].accuracy

    def best(self, before: Outcomes) -> Choice:
        """The choice among all values of alpha and the unchanged model, of which `before` are the outcomes."""
        first_look = FirstLooks(self._is_right) if len(self._indices) >= WORTH_A_FIRST_LOOK else None

        def needed(alpha: float) -> float:
            return max(0.0, convincing_gain(*discordant(before, self.outcomes[alpha])))

        choice = best_on_validation(self.accuracy, before.accuracy, self._energies, len(before), first_look, needed)
        return replace(choice, samples=len(before))

    def _is_right(self, alpha: float, begin: int, end: int) -> npt.NDArray[np.bool_]:
        """Which of some of the images for first looks the network has right with an alpha."""
        if begin == 0:
            self._apply(alpha, FEW_BATCHNORM_IMAGES)
        outcomes = self._session.score(
            self._images, f"looking at alpha {alpha:g}", self._first_indices[begin:end], exact=False
        )
        right: npt.NDArray[np.bool_] = outcomes.correct.numpy()
        return right
