"""A diagnosis in words: verdict, assumptions, remedies, and the page that the command line prints."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from irm_fast.diagnostics.subject import ENOUGH, FAILED, PASSED, TOO_FEW, Check, DiagnosedLog

IDENTIFIED, CONDITIONAL, OPEN, CONTRADICTED = "identified", "conditional", "not identified", "contradicted"
INDEPENDENT = "identified if the signals are independent given the response"


def verdict(log: DiagnosedLog, checks: Sequence[Check], labels_ignorable: bool) -> tuple[str, str]:
    """Return the kind of verdict and the verdict in words.

    Only known propensities, or labels whose choice does not depend on the preference, make a reward `identified`.
    """
    failed = [check.name for check in checks if check.result == FAILED and check.about == "identification"]
    if failed:
        return CONTRADICTED, f"contradicted by this log: {', '.join(failed)}"
    if log.designs and set(log.designs) == {"known"}:
        return IDENTIFIED, "identified, as the propensities are known"
    labelled = min((log.preference == 1).sum(), (log.preference == 0).sum()) >= ENOUGH
    if labelled and labels_ignorable:
        return IDENTIFIED, "identified by the explicit labels, whose choice does not depend on the preference"
    if not log.designs:
        return (
            OPEN,
            "not identified without assuming that labelled rows were chosen regardless of the preference",
        )
    together = _results(checks)["co-actions"] == PASSED
    if together or (len(log.designs) > 1 and "known" in log.designs):
        return CONDITIONAL, INDEPENDENT
    return OPEN, f"not identified without assuming {_belief(log)}"


def _results(checks: Sequence[Check]) -> dict[str, str]:
    return {check.name: check.result for check in checks}


def _belief(log: DiagnosedLog) -> str:
    """Say what a log that identifies nothing by itself leaves to belief."""
    kinds = set(log.designs) - {"known"}
    one = len(log.designs) == 1
    if "hidden" in kinds:
        what = "that the fit split preference and propensity rightly, though any other split explains the log as well"
    elif "features" in kinds:
        named = ", ".join(log.feature_names) or "the features"
        what = f"that propensities depend on {named} only, and the preference on none of them (then up to scale)"
    else:
        what = f"that {'the propensity is' if one else 'propensities are'} the same for every response"
    if not one and len(set(log.polarity)) == 1:
        what += f"; the signals act together in fewer than {ENOUGH} rows that could tell"
    return what


def assumptions(log: DiagnosedLog, labels_ignorable: bool) -> tuple[str, ...]:
    """Say what has to be believed for these propensity designs, a sentence each."""
    found = []
    named = ", ".join(log.feature_names) or "the features"
    for design, text in (
        ("constant", "The propensity of {who} is the same for every response."),
        ("hidden", "The propensity of {who} is a function of the response of the form that was fitted."),
        ("features", f"The propensity of {{who}} depends on {named} only, and the preference on none of them."),
        ("known", "The known propensity of {who} is right, as under randomised exposure."),
    ):
        who = [name for name, kind in zip(log.names, log.designs, strict=True) if kind == design]
        if who:
            found.append(text.format(who=", ".join(who)))
    if len(log.names) == 1 and log.designs[0] == "constant":
        found.append("The shape of the sigmoid sets the scale; the ranking is that of the action rate.")
    if len(log.names) > 1:
        found.append("Given the response and whether it pleased, the signals act independently of each other.")
    if len(set(log.polarity)) == 2:
        found.append("With both polarities, the scale rests on the propensities.")
    for name, rate in zip(log.names, log.misclick, strict=True):
        if rate:
            found.append(f"{rate:g} of the active users act by {name} on what it does not speak for.")
    if (log.preference >= 0).any():
        word = "you say so" if labels_ignorable else "nobody has said so"
        found.append(f"The choice of rows with an explicit label does not depend on the preference ({word}).")
    return tuple(found)


REMEDIES = {
    "nesting": "Keep one of the two signals; or record a signal as missing where it could not be given, and add one "
    "that does not depend on the other.",
    "opposite signals": "Declare a misclick rate, or check how the two signals are recorded and their polarity.",
    "inequality": "Signals that exclude each other (one menu, one click): log them as one signal, or log missing where "
    "one can no longer be given.",
    "pairwise agreement": "Two of the signals are tied: leave one out, or log where each button was shown.",
    "third signal": "Active users act by every signal: ask 1 in 100 for a thumbs rating, or hide a button in 1% of the "
    "traffic, at random, to measure propensities.",
    "users alike": "Take the range of the mean preference, not the point; ask 1 in 100 for a thumbs rating to fix it.",
    "fit: calibration": "The model predicts actions poorly: train longer, or with another propensity design.",
}
SECOND_SIGNAL = (
    "Log one more action of the same polarity that does not depend on the first, or ask 1 in 100 for a thumbs rating."
)
NOT_TOGETHER = "Record both signals in the same rows, null only where one could not be given, and collect more rows."
USER_IDS = "Log user ids: users with several rows show whether some just act more."
RANDOMISE = "Show a button at random in 1% of the traffic: that makes its propensity known."


def remedies(log: DiagnosedLog, kind: str, checks: Sequence[Check]) -> tuple[str, ...]:
    """Name the cheapest remedy for each problem, the worst problem first."""
    found = [REMEDIES[check.name] for check in checks if check.result == FAILED and check.name in REMEDIES]
    if kind == OPEN and log.names:
        tied = _results(checks)["co-actions"] == TOO_FEW
        found += [NOT_TOGETHER if tied else SECOND_SIGNAL, RANDOMISE]
    elif kind == OPEN:
        found.append("Label rows drawn at random.")
    if kind == CONDITIONAL and len(np.unique(log.users)) == len(log.users):
        found.append(USER_IDS)
    return tuple(dict.fromkeys(found))


def report(diagnosis: Mapping[str, Any], width: int = 110) -> str:
    """Format what `Diagnosis.to_dict()` returns as a page of text."""
    lines = textwrap.wrap(f"The reward is {diagnosis['verdict']}.", width)
    lines += _list("Assumed", diagnosis["assumed"], width)
    lines.append("Tested in this log")
    name_width = max(len(test["name"]) for test in diagnosis["tests"])
    for test in diagnosis["tests"]:
        head = f"  {test['name']:<{name_width}}  {test['result']:<12}  "
        lines += textwrap.wrap(test["text"], width, initial_indent=head, subsequent_indent=" " * len(head))
    lines += _list("How far it could be off", _off(diagnosis["sensitivity"]), width)
    return "\n".join(lines + _list("What would help", diagnosis["remedies"], width))


def summary(diagnosis: Mapping[str, Any], width: int = 110) -> str:
    """Format what `Diagnosis.to_dict()` returns as the few lines that `train` ends with."""
    lines = textwrap.wrap(f"The reward is {diagnosis['verdict']}.", width)
    by_result: dict[str, list[str]] = {}
    for test in diagnosis["tests"]:
        by_result.setdefault(test["result"], []).append(test["name"])
        if test["result"] == FAILED:
            lines += _wrap(f"{test['name']}: {test['text']}", width, "  ")
    counts = "; ".join(f"{result}: {', '.join(names)}" for result, names in by_result.items())
    return "\n".join([*lines, *_wrap(counts, width, "  "), *_list("What would help", diagnosis["remedies"], width)])


def _off(numbers: Mapping[str, Any]) -> list[str]:
    """Say how far the reward could be off, an entry a number of `Sensitivity`."""
    lines = []
    mean, span = numbers["mean_g"], numbers["mean_g_range"]
    if mean is not None:
        more = f"; the log allows {span[0]:.2f} to {span[1]:.2f}" if span else ""
        lines.append(f"mean preference {mean:.2f} as fitted{more}")
    for entry in numbers["shared_activity"]:
        rank = entry["rank_correlation"]
        ranks = "" if rank is None else f", rank correlation with the fit {rank:.3f}"
        lines.append(f"if users share an activity of sd {entry['sd']:g}: mean preference {entry['mean_g']:.2f}{ranks}")
    if numbers["rank_with_action_rate"] is not None:
        rank = numbers["rank_with_action_rate"]
        lines.append(f"rank correlation with the plain action rate {rank:.3f}; all of it may be propensity")
    if numbers["refit_agreement"] is not None:
        lines.append(f"refits rank alike to {numbers['refit_agreement']:.3f}, which does not prove them right")
    return lines


def _list(title: str, entries: Sequence[str], width: int) -> list[str]:
    lines = [title] if entries else []
    for entry in entries:
        lines += _wrap(entry, width, "  - ")
    return lines


def _wrap(text: str, width: int, head: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent="    ")
