"""Declared misclicks that leave too little proof: said, since the scale is wrong then."""

from __future__ import annotations

from irm_fast.common.warning import warn_caller
from irm_fast.embeddings.context_step import SURE
from irm_fast.embeddings.observed import Observed
from irm_fast.embeddings.problem import Problem, Split
from irm_fast.embeddings.two_step import proof

LITTLE = 0.1  # of the rows with an action: with fewer proven ones, activity was taken for misclicks


def warn_of_little_proof(problem: Problem, split: Split, observed: Observed) -> None:
    """Warn where misclicks leave too few proven rows to tell how active users are.

    Args:
        problem: The rows.
        split: Propensities and reward that were fitted in turn.
        observed: The observations of the same rows.
    """
    if observed.users is None and observed.sessions is None:
        return
    proofs = proof(problem.objective, split.reward.held_out, split.logits.held_out)
    acted = problem.objective.feedback == 1
    proven = int((acted & (proofs > SURE)).any(1).sum())
    if proven < LITTLE * int(acted.any(1).sum()):
        warn_caller(
            f"misclick_rate: only {proven} of {int(acted.any(1).sum())} rows with an action are proven (by an action "
            f"that speaks for a preference at {SURE:.0%}), too few to tell users who act more than others from "
            "misclicks: if users differ in activity, preferences are far too low, and the ranking suffers. Have rows "
            "labelled and pass them as preference with labels_ignorable=True; or lower the rate, if it is a guess"
        )
