"""Rankings within users and within prompts, and how far the user, the model or the length alone foretells ratings.

Pooled figures of a log of many users say little of responses: a reward that knows who rates can rank rows of generous
users above those of strict ones, and rank no two responses to one prompt rightly.
"""

from __future__ import annotations

import numpy as np

from irm_fast.data.groups import NO_NAME
from irm_fast.diagnostics.metrics import ordered_pairs, reward_metrics


def within_auroc(logit: np.ndarray, preference: np.ndarray, groups: np.ndarray) -> float:
    """Return the AUROC within groups: of all pairs of a preferred and another row of one group, the share in order.

    It is the mean of the groups' AUROCs, weighted by their numbers of such pairs; a tie counts half.

    Args:
        logit: Reward logits of shape (N,).
        preference: The preference of each row, 0 or 1, of shape (N,).
        groups: Group numbers, of shape (N,); rows of the number -1 are left out.

    Returns:
        The share; NaN if no group has rows of both kinds, or a logit of a group is NaN.

    Examples:
        >>> within_auroc(np.array([1.0, 0.0, 5.0, 6.0]), np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1]))
        0.5
    """
    rows = np.flatnonzero(groups != NO_NAME)
    rows = rows[np.lexsort((logit[rows], groups[rows]))]
    logit, preference, groups = logit[rows], preference[rows].astype(np.float64), groups[rows]
    if not len(rows) or np.isnan(logit).any():
        return float("nan")

    # Rows that are not preferred: of each tie, of each group, and before the first row of each
    new_group = np.r_[True, groups[1:] != groups[:-1]]
    new_tie = new_group | np.r_[True, logit[1:] != logit[:-1]]
    group, tie = np.cumsum(new_group) - 1, np.cumsum(new_tie) - 1
    in_tie, in_group = np.bincount(tie, 1 - preference), np.bincount(group, 1 - preference)
    before_tie, before_group = np.cumsum(in_tie) - in_tie, np.cumsum(in_group) - in_group

    below = (before_tie + in_tie / 2)[tie] - before_group[group]
    possible = float(preference @ in_group[group])
    return float(preference @ below) / possible if possible else float("nan")


def alone(preference: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the mean preference of the other rows of each row's group, of shape (N,).

    Args:
        preference: The preference of each row, 0 or 1, of shape (N,).
        groups: Group numbers, of shape (N,); -1 for a row without a group. A row without others takes the mean of all.
    """
    known = groups != NO_NAME
    place = np.where(known, groups, 0)
    size = np.bincount(groups[known], minlength=place.max() + 1)[place]
    total = np.bincount(groups[known], preference[known], place.max() + 1)[place]
    lonely = ~known | (size < 2)
    means: np.ndarray = np.where(lonely, preference.mean(), (total - preference) / np.where(lonely, 1, size - 1))
    return means


def alone_metrics(
    name: str, preference: np.ndarray, groups: np.ndarray, pair: np.ndarray | None = None
) -> dict[str, float]:
    """Measure how well the group of a row alone ranks: by the mean preference of the group's other rows.

    A row's own preference lowers the mean of its others, so that rows of one group would be ranked the wrong way round.
    The group alone cannot tell them apart, and they count half.

    Args:
        name: What the groups are, as it stands in the keys: "user", "model".
        preference: The preference of each row, 0 or 1, of shape (N,).
        groups: Group numbers, of shape (N,); -1 for a row without a group.
        pair: As of `metrics.reward_metrics`, or None.

    Returns:
        auroc_NAME_alone and, where pairs have rows of two groups, pair_accuracy_NAME_alone over all pairs.
    """
    score = alone(preference, groups)
    known, preferred = groups != NO_NAME, float(preference.sum())
    liked, sizes = np.bincount(groups[known], preference[known]), np.bincount(groups[known])
    within, possible = float(liked @ (sizes - liked)), preferred * (len(preference) - preferred)
    pooled = reward_metrics(score, preference)["auroc"]
    found = {f"auroc_{name}_alone": pooled + within / 2 / possible if possible else pooled}
    if pair is not None and (pair >= 0).any():
        right, rows = ordered_pairs(score, preference, pair)
        one, other = groups[rows].T
        alike = (one == other) & (one != NO_NAME)
        if len(right) and not alike.all():
            found[f"pair_accuracy_{name}_alone"] = float(np.where(alike, 0.5, right).mean())
    return found
