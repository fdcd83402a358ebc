"""What is assumed of propensities that a log does not show: of one signal, and of signals that hardly act together.

Features that the user passes are an assumption of his: they alone move the propensity. Without any it is constant.
"""

from __future__ import annotations

from typing import Any

from irm_fast.common.warning import warn_caller
from irm_fast.embeddings.objective import Objective
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.two_step import ENOUGH, coactions, enough_coactions, never_together

LEAST = 5  # labels of each kind; fewer choose nothing
ASSUMED = {
    "constant": "the propensity is taken to be the same for every response",
    "features": "the propensity is taken to depend on the propensity features alone, and the preference on none of "
    "them",
}


def assumed_design(features: Any) -> str:
    """Return the design of a propensity that the log does not show, by the propensity features or None."""
    return "constant" if features is None else "features"


def warn_of_one_signal(name: str, observed: Observed) -> None:
    """Warn of what the split of one signal is taken for without labels.

    Args:
        name: The design that is assumed.
        observed: The rows, with one signal.
    """
    labels, actions = observed.preference, (observed.feedback == 1).any()
    if not actions:  # labels alone: there is nothing to split
        return
    few = "" if labels is None else f" ({(labels == 1).sum()} of 1, {(labels == 0).sum()} of 0)"
    _warn(
        name,
        f"one signal, and fewer than {LEAST} labels of each kind{few}",
        "Have rows rated (irm-fast label --next 100) and pass them as preference, or log a second signal",
    )


def warn_of_few_coactions(observed: Observed, objective: Objective) -> None:
    """Warn of what propensities are taken for that are to be chosen, where no signal shows that of another.

    Args:
        observed: The rows, with several signals.
        objective: Their implicit loss.
    """
    if "auto" not in observed.designs or "known" in observed.designs or enough_coactions(objective):
        return
    if never_together(observed.polarity):
        why = f"{' and '.join(observed.signals)}: one signal of each polarity"
        more = "log a second signal of either"
    else:
        counted = zip(observed.signals, coactions(objective), strict=True)
        seen = ", ".join(f"{name} {count}" for name, count in counted)
        why, more = f"fewer than {ENOUGH} co-actions ({seen})", "collect more rows"
    remedy = f"Have rows rated (irm-fast label --next 100) and pass them as preference, or {more}"
    _warn(assumed_design(observed.features), why, remedy)


def _warn(name: str, why: str, remedy: str) -> None:
    """Warn of an assumption: its design, why it is made, and what would replace it."""
    warn_caller(
        f"{why}: {ASSUMED[name]}, which the log cannot show to be wrong, and then the reward may rank worse than the "
        f"action rate. {remedy}; propensity_design={name!r} says that you mean it"
    )
