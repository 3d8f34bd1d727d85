"""What else there is for a model that a projection does little for."""

from __future__ import annotations

from sapcli.repairs.alpha_search import Evidence
from sapcli.repairs.pipeline import Repair

# A network that fits its training labels hardly better than others of the same kind has memorised hardly any of them.
_HARDLY_MEMORISED = 0.1


def what_else(repair: Repair, fitted: float | None) -> str | None:
    """What was found of a model that has little to repair, and the way on; `None` where the repair is worth it.

    Args:
        repair: What was done.
        fitted: The share of the training labels that the model as it was agrees with, in [0, 1]; `None` if not known.
    """
    if repair.choice.evidence is Evidence.FIXED:
        return None
    judged = None if repair.before is None else repair.before.top1 / 100
    facts = [] if fitted is None else [f"{fitted:.1%} of its training labels"]
    facts += [] if judged is None else [f"{judged:.1%} of the validation labels"]
    agrees = f" (the model agrees with {' and '.join(facts)})" if facts else ""
    if not repair.changed:
        return f"no projection helps{agrees}: a few epochs of training still may, see `sap polish`"
    if fitted is not None and judged is not None and fitted - judged < _HARDLY_MEMORISED:
        return (
            f"the model has hardly memorised its labels{agrees}: a few epochs of training give more, see `sap polish`"
        )
    return None
