"""A diagnosis in words: verdict, assumptions, remedies, and the page that the command line prints."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from irm_fast.diagnostics import learned as learning
from irm_fast.diagnostics.learned import NOT_LEARNED
from irm_fast.diagnostics.subject import ENOUGH, FAILED, NOT_TESTABLE, PASSED, TOO_FEW, Check, DiagnosedLog

IDENTIFIED, CONDITIONAL, OPEN, CONTRADICTED = "identified", "conditional", "not identified", "contradicted"
INDEPENDENT = "identified if the signals are independent given the response"


class Verdict(NamedTuple):
    """The kinds of verdict, overall and for ranking and scale, the words for them, and whether it was learned."""

    kind: str
    ranking: str
    scale: str
    words: str
    learned: str = ""


def verdict(log: DiagnosedLog, checks: Sequence[Check], labels_ignorable: bool) -> Verdict:
    """Return the verdict: on what ranking and scale rest, and whether this log contradicts it.

    Only known propensities, or labels whose choice does not depend on the preference, make a reward `identified`. What
    moves propensities alike for all responses (users, times, misclicks) hurts the scale, and hardly the ranking.
    """
    learned, said = learning.verdict(log, checks)
    found = _judged(log, checks, labels_ignorable)
    words = found.words if not said or found.kind == NOT_LEARNED else f"{found.words}; {said}"
    return found._replace(words=words, learned=learned)


def _judged(log: DiagnosedLog, checks: Sequence[Check], labels_ignorable: bool) -> Verdict:
    """Return the verdict without the word on whether the reward was learned, unless it is worse than constant rates."""
    base, words = _rests_on(log, checks, labels_ignorable)
    of = {about: _failed(checks, about) for about in ("identification", "reward", "scale", "learning")}
    if of["identification"] or of["reward"]:
        named = ", ".join(of["identification"] + of["reward"] + of["scale"])
        words = f"contradicted by this log: {named}; neither the ranking nor the scale can be relied on"
        return Verdict(CONTRADICTED, CONTRADICTED, CONTRADICTED, words)
    ranking = NOT_LEARNED if of["learning"] else base
    if of["learning"]:
        words = "not learned: it foretells actions no better than constant rates do"
    if of["scale"]:
        says = (
            f"contradicted by this log: {', '.join(of['scale'])}; that moves the scale (preferences as probabilities)"
        )
        return Verdict(CONTRADICTED, ranking, CONTRADICTED, f"{says} more than the ranking, which is {words}")
    if base == CONDITIONAL:
        words += "; a little dependence moves the scale more than the ranking: the mean preference is a range"
    return Verdict(ranking, ranking, base, words)


def _failed(checks: Sequence[Check], about: str) -> list[str]:
    return [check.name for check in checks if check.result == FAILED and check.about == about]


def _rests_on(log: DiagnosedLog, checks: Sequence[Check], labels_ignorable: bool) -> tuple[str, str]:
    """Return the kind of verdict and the verdict in words, as far as no check fails."""
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
    "act together": "If one of the two shows displeasure, declare its polarity -1; if they exclude each other (one "
    "menu), log them as one signal, or log missing where one can no longer be given.",
    "known propensities": "Correct the known propensities: each is the probability that a user who is pleased acts, "
    "between 0 and 1, and no smaller than the rate of actions. Or choose another propensity design.",
    "one choice a session": "Log missing (null), not silent, where another answer of the session was chosen; or learn "
    "from the choices as pairs.",
    "time": "Give the times of rows to the fit (timestamp in the log), so that propensities may depend on them.",
    "place in session": "Give the sessions to the fit (session_id in the log), so that propensities may depend on "
    "the place.",
    "segments": "Log the segment among the features, and give it to the propensities (propensity design features).",
    "session": "Give the sessions to the fit (session_id in the log), so that propensities may depend on them.",
    "user activity": "Give the users to the fit (user_id in the log), so that propensities may depend on their "
    "activity.",
    "users who act on everything": "Leave these users out, or cap the rows of a user; the details of the check name "
    "them.",
    "silent rows by day": "Find out what was logged in these days: keep only days in which silent rows are all logged.",
    "duplicate rows": "Keep one of the rows that are logged twice.",
    "reward varies": "The model learned nothing: look at its inputs (are all embeddings equal?) and its training loss.",
    "better than constant rates": "Do not use this reward: collect more rows, or use other embeddings or a larger "
    "model.",
    "users alike": "Take the range of the mean preference, not the point; ask 1 in 100 for a thumbs rating to fix it.",
    "fit: calibration": "The model predicts actions poorly: train longer, or with another propensity design.",
}
SECOND_SIGNAL = (
    "Log one more action of the same polarity that does not depend on the first, or ask 1 in 100 for a thumbs rating."
)
NOT_TOGETHER = "Record both signals in the same rows, null only where one could not be given, and collect more rows."
MAYBE_NESTED = (
    "{inner} hardly acts but where {outer} does ({rows} rows, too few to tell): if it can only follow, the two are one "
    "signal. Declare the order, and log one more action that does not depend on these."
)
USER_IDS = "Log user ids: users with several rows show whether some just act more."
RANDOMISE = "Show a button at random in 1% of the traffic: that makes its propensity known."


def remedies(log: DiagnosedLog, verdict: Verdict, checks: Sequence[Check]) -> tuple[str, ...]:
    """Name the cheapest remedy for each problem, the worst problem first."""
    found = [remedy for check in checks if check.result == FAILED for remedy in _remedies_of(check)]
    found += [
        MAYBE_NESTED.format(**check.details[0])
        for check in checks
        if check.name == "nesting" and check.result == TOO_FEW and check.details
    ]
    if verdict.kind == OPEN and log.names:
        tied = _results(checks)["co-actions"] == TOO_FEW
        found += [NOT_TOGETHER if tied else SECOND_SIGNAL, RANDOMISE]
    elif verdict.kind == OPEN:
        found.append("Label rows drawn at random.")
    if verdict.ranking == CONDITIONAL and not log.user_names:
        found.append(USER_IDS)
    return tuple(dict.fromkeys(found))


def _remedies_of(check: Check) -> list[str]:
    """Return what helps against the failure of a check, with the signals and segments that it names."""
    if check.name == "broken button":
        silent = [f"{', '.join(cell['signals'])} {cell['where']}" for cell in check.details[:3]]
        return [f'Record null (missing) for {what}: irm-fast mask "{what}" does it to a log.' for what in silent]
    if check.name == "funnel":
        entry = check.details[0]
        order = f'after={{"{entry["second"]}": "{entry["first"]}"}}'
        return [f"Declare the order, {order}: the two are then one signal of two stages."]
    if check.name == "misclicks":
        rate = check.details[0]["misclick_rate"]
        return [
            f"Declare a misclick rate near {rate:g}, if users may act by mistake so often; labels show the rate. "
            "Signals that mean different things look alike: then leave one out."
        ]
    if check.name == "labels":
        entry = check.details[0]
        return [f"Declare the misclick rate that the labels show: {entry['misclick_rate']:.2g} for {entry['signal']}."]
    return [REMEDIES[check.name]] if check.name in REMEDIES else []


def report(diagnosis: Mapping[str, Any], width: int = 110) -> str:
    """Format what `Diagnosis.to_dict()` returns as a page of text."""
    lines = textwrap.wrap(f"The reward is {diagnosis['verdict']}.", width)
    lines += _list("Assumed", diagnosis["assumed"], width)
    lines.append("Tested in this log")
    tested = [test for test in diagnosis["tests"] if test["result"] != NOT_TESTABLE]
    name_width = max((len(test["name"]) for test in tested), default=0)
    for test in tested:
        head = f"  {test['name']:<{name_width}}  {test['result']:<12}  "
        lines += textwrap.wrap(test["text"], width, initial_indent=head, subsequent_indent=" " * len(head))
    lines += _list("Not testable here", _untested(diagnosis["tests"]), width)
    lines += _list("How far it could be off", how_far_off(diagnosis["sensitivity"]), width)
    return "\n".join(lines + _list("What would help", diagnosis["remedies"], width))


def _untested(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the checks that could not be made, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for test in tests:
        if test["result"] == NOT_TESTABLE:
            by_reason.setdefault(test["text"], []).append(test["name"])
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def summary(diagnosis: Mapping[str, Any], width: int = 110) -> str:
    """Format what `Diagnosis.to_dict()` returns as the few lines that `train` ends with."""
    lines = textwrap.wrap(f"The reward is {diagnosis['verdict']}.", width)
    by_result: dict[str, list[str]] = {}
    for test in diagnosis["tests"]:
        by_result.setdefault(test["result"], []).append(test["name"])
        if test["result"] == FAILED:
            lines += _wrap(f"{test['name']}: {test['text']}", width, "  ")
    counts = "; ".join(
        f"{result}: {f'{len(names)} checks' if result == NOT_TESTABLE else ', '.join(names)}"
        for result, names in by_result.items()
    )
    return "\n".join([*lines, *_wrap(counts, width, "  "), *_list("What would help", diagnosis["remedies"], width)])


def how_far_off(numbers: Mapping[str, Any]) -> list[str]:
    """Say how far the reward could be off, an entry a number of `Sensitivity`."""
    lines = []
    mean, span = numbers["mean_g"], numbers["mean_g_range"]
    if span is not None:
        error = numbers.get("mean_g_error")
        chance = "" if error is None else f" (standard error {error:.2g})"
        lines.append(
            f"mean preference {span[0]:.2f} to {span[1]:.2f}; {mean:.2f}{chance} only if all that is assumed holds"
        )
    elif mean is not None:
        lines.append(f"mean preference {mean:.2f}")
    for entry in numbers["shared_activity"]:
        rank = entry["rank_correlation"]
        ranks = "" if rank is None else f", rank correlation with the fit {rank:.3f}"
        lines.append(f"if users share an activity of sd {entry['sd']:g}: mean preference {entry['mean_g']:.2f}{ranks}")
    if numbers.get("lost_silent") is not None:
        lines.append(f"if half of the silent rows were never logged: mean preference {numbers['lost_silent']:.2f}")
    if numbers.get("funnel") is not None:
        lines.append(
            f"if one signal waits for the other: mean preference up to {numbers['funnel']:.2f}; times of actions "
            "(acted_at) or a third signal would show it"
        )
    clicks = ", ".join(f"{entry['mean_g']:.2f} at {entry['rate']:g}" for entry in numbers.get("misclick", ()))
    if clicks:
        lines.append(f"by misclick rate: mean preference {clicks}")
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
