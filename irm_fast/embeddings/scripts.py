"""Users who act on everything: their rows tell nothing of any response, and a fit leaves them out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from irm_fast.common.warning import warn_caller
from irm_fast.diagnostics.arguments import user_numbers
from irm_fast.diagnostics.subject import FAILED, PASSED, Check, DiagnosedLog
from irm_fast.diagnostics.users import scripts
from irm_fast.embeddings.observed import Observed


def without_scripts(observed: Observed) -> tuple[Observed, Check | None]:
    """Give the weight 0 to all rows of users who act on everything, as scripts do, and warn of it.

    Who acts on what does not please as well has no propensity to act on what does, and whoever shares a log with him
    seems to be pleased by all that he was shown.

    Args:
        observed: The rows.

    Returns:
        The rows; and the check `diagnostics.users.act_on_everything` of all of them, passed as the users are left out;
        or None if there are none such.
    """
    if observed.users is None:
        return observed, None
    counted = np.flatnonzero(observed.weight > 0)
    check, rows = scripts(_log(observed).subset(counted))
    if check.result != FAILED or rows.all():
        return observed, None
    weight = observed.weight.copy()
    weight[counted[rows]] = 0
    warn_caller(
        f"users: {check.text}; people do not, so that their {rows.sum()} rows are left out. The check "
        "'users who act on everything' of diagnosis_ names them: if they are people, give each row a user of its own"
    )
    return replace(observed, weight=weight), replace(check, result=PASSED, text=f"left out: {check.text}")


def _log(observed: Observed) -> DiagnosedLog:
    users, names = user_numbers(observed.users, len(observed))
    return DiagnosedLog(
        names=observed.signals,
        designs=observed.designs,
        feedback=observed.feedback.astype(np.int64),
        polarity=np.array(observed.polarity),
        misclick=np.array(observed.misclick_rate),
        preference=observed.labels(),
        users=users,
        known=np.full(observed.feedback.shape, np.nan),
        user_names=names,
    )
