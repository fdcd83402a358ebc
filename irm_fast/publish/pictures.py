"""The charts of a report, each made of what a run keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import beta

from irm_fast.losses.group_masses import GROUPS
from irm_fast.publish.charts import IN_TURN, Chart, Series

_AGREE = 0.8  # of the 95% intervals of ten deciles that hold the prediction: fewer would be by chance once in 80


def learning(metrics: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield the curve of the loss over the steps, in training and on held-out rows.

    Args:
        metrics: The entries of the loop's log, of the design that was chosen.
    """
    series = []
    for key, label, colour in (("loss", "training", "faint"), ("eval_nll", "held out", "ours")):
        points = [(m["step"], m[key]) for m in metrics if m.get(key) is not None and m.get("step") is not None]
        if points:
            steps, values = zip(*points, strict=True)
            series.append(Series("line", steps, values, label, colour))  # type: ignore[arg-type]
            if key == "eval_nll":
                series.append(Series("points", steps, values, "", colour))  # type: ignore[arg-type]
    if not series:
        return
    held = [(m["eval_nll"], m["step"]) for m in metrics if m.get("eval_nll") is not None]
    title = "Training loss by step"
    if held:
        best, step = min(held)
        after = ", and higher later: that model was kept" if step < held[-1][1] else ""
        title = f"Held-out loss is lowest, {best:.3f}, at step {step:,}{after}"
    yield Chart("learning", title, "step of the optimiser", "loss, nats a row", series)


def groups(metrics: Sequence[Mapping[str, Any]], polarity: Mapping[str, int]) -> Iterator[Chart]:
    """Yield for each signal the shares of the four groups in the training rows of the steps that were logged.

    Args:
        metrics: As of `learning`.
        polarity: The polarity of each signal.
    """
    labels = ("pleased, active", "not pleased, active", "pleased, passive", "not pleased, passive")
    for name, sign in polarity.items():
        keys = [f"{name}_{group}" for group in GROUPS]
        entries = [m for m in metrics if m.get("step") is not None and all(m.get(key) is not None for key in keys)]
        if len(entries) < 2:
            continue
        steps = [entry["step"] for entry in entries]
        series = [
            Series("line", steps, _smooth([100 * entry[key] for entry in entries]), label, colour)
            for key, label, colour in zip(keys, labels, IN_TURN, strict=True)
        ]
        late = entries[len(entries) // 2 :]
        silent = float(np.mean([entry[keys[2 if sign > 0 else 3]] for entry in late]))
        title = f"{_percent(silent)} of the rows {'please' if sign > 0 else 'displease'}, and {name} is silent"
        note = "Of training rows, means over five entries of the log; the number is the mean of the second half."
        yield Chart(f"groups-{name}", title, "step of the optimiser", "share of the rows, %", series, note)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the mean of each value with two on each side, as far as there are."""
    return [float(np.mean(values[max(0, place - 2) : place + 3])) for place in range(len(values))]


def by_action(reward: Mapping[str, Any], polarity: Mapping[str, int]) -> Iterator[Chart]:
    """Yield for each signal the rewards of the rows in which it acted and of those in which it was silent."""
    for entry in reward["signals"]:
        name, acted, silent = entry["name"], np.array(entry["acted"]), np.array(entry["silent"])
        if not acted.sum() or not silent.sum():
            continue
        edges = reward["edges"]
        series = [
            Series("bars", edges, _shares(silent), f"silent ({silent.sum():,})", "faint"),
            Series("bars", edges, _shares(acted), f"acted ({acted.sum():,})", "ours"),
        ]
        auroc, low, high = entry["auroc"], entry.get("auroc_low"), entry.get("auroc_high")
        note = f"A row in which {name} acted has the higher reward of two in {auroc:.0%} of the pairs"
        note += f" (95% interval {low:.0%} to {high:.0%})." if low is not None else "."
        title = _told_apart(name, low, high, polarity[name])
        yield Chart(f"reward-{name}", title, "reward logit", "share of these rows, %", series, note)


def _told_apart(name: str, low: float | None, high: float | None, sign: int) -> str:
    """Say how rewards of acted rows lie to those of silent ones."""
    if low is None or high is None or low <= 0.5 <= high:
        return f"Rewards do not differ beyond chance between rows where {name} acted and others"
    way = "higher" if low > 0.5 else "lower"
    expected = (low > 0.5) == (sign > 0)
    return f"Where {name} acted, rewards are {way}" + ("" if expected else ", against its meaning")


def _shares(counts: np.ndarray) -> list[float]:
    """Return counts as percentages of their sum."""
    return [100 * float(count) / max(1, int(counts.sum())) for count in counts]


def reliability(tests: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield for each signal its predicted and observed rates, by tenths of the rows in the order of the prediction."""
    deciles = next((test["details"] for test in tests if test["name"] == "fit: calibration"), ())
    for name in dict.fromkeys(entry["signal"] for entry in deciles):
        own = [entry for entry in deciles if entry["signal"] == name]
        predicted = [100 * entry["predicted"] for entry in own]
        observed = [100 * entry["observed"] for entry in own]
        ends = [_interval(entry["observed"], entry["rows"]) for entry in own]
        low, high = ([100 * end[side] for end in ends] for side in (0, 1))
        held = sum(a <= p <= b for a, p, b in zip(low, predicted, high, strict=True))
        top = 1.05 * max(*predicted, *high)
        said = [
            f"{entry['rows']:,} rows: predicted {entry['predicted']:.1%}, acted {entry['observed']:.1%}"
            for entry in own
        ]
        series = [
            Series("rule", (0, top), (0, top), "as predicted", "faint"),
            Series("points", predicted, observed, "observed, 95% interval", "ours", low, high, said),
        ]
        verdict = (
            "acts about as often as predicted" if held >= _AGREE * len(own) else "does not act as often as predicted"
        )
        note = f"{held} of {len(own)} intervals hold the prediction. A fit that agrees identifies nothing by itself."
        yield Chart(
            f"reliability-{name}",
            f"{name} {verdict}",
            f"predicted rate of {name}, %",
            "observed rate, %",
            series,
            note,
            (0, top),
            (0, top),
        )


def _interval(share: float, rows: int) -> tuple[float, float]:
    """Return the exact 95% interval of a share of so many rows (Clopper and Pearson, 1934)."""
    count = round(share * rows)
    low = float(beta.ppf(0.025, count, rows - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, rows - count)) if count < rows else 1.0
    return low, high


def propensities(found: Sequence[Mapping[str, Any]], polarity: Mapping[str, int]) -> Iterator[Chart]:
    """Yield for each signal the histogram of its predicted propensities."""
    for number, entry in enumerate(found):
        low, middle, high = entry["quantiles"]
        name, counts = entry["name"], np.array(entry["counts"])
        who = "pleased" if polarity[name] > 0 else "displeased"
        if high - low < 1e-3:
            title = f"Of {who} users {_percent(middle)} give {name}, whatever the response"
        else:
            title = f"Of {who} users {_percent(low)} to {_percent(high)} give {name}, by the response"
        series = [Series("bars", [100 * e for e in entry["edges"]], _shares(counts), "", IN_TURN[number % 4])]
        note = "" if high - low < 1e-3 else f"Of nine tenths of the rows; the median is {_percent(middle)}."
        label = f"propensity of {name}, %"
        yield Chart(f"propensity-{name}", title, label, "share of the rows, %", series, note)


def exploits(found: Mapping[str, Any]) -> Iterator[Chart]:
    """Yield the correlations of the reward, and of a naive one, with marks of the responses."""
    marks = found["marks"]
    if not marks:
        return
    series = []
    for kind, label, colour, shift in (("ours", "this reward", "ours", -0.14), ("naive", "naive", "other", 0.14)):
        own = [(place + shift, mark["name"], mark[kind]) for place, mark in enumerate(marks) if mark[kind] is not None]
        if own:
            said = [
                f"{label}, {name}: {m['correlation']:+.2f} ({m['low']:+.2f} to {m['high']:+.2f})" for _, name, m in own
            ]
            columns = {key: [m[key] for _, _, m in own] for key in ("correlation", "low", "high")}
            places = [place for place, _, _ in own]
            ends = (columns["low"], columns["high"])
            series.append(Series("points", columns["correlation"], places, label, colour, *ends, said))  # type: ignore[arg-type]
    title = "No mark stands out: the intervals of all correlations with the reward hold 0"
    if out := [mark for mark in marks if mark["ours"]["low"] > 0 or mark["ours"]["high"] < 0]:
        strong = max(out, key=lambda mark: abs(mark["ours"]["correlation"]))
        title = f"The reward goes most with {strong['name']}: correlation {signed(strong['ours']['correlation'])}"
    series.insert(0, Series("rule", (0, 0), (-0.5, len(marks) - 0.5), "", "faint"))
    names = [mark["name"] for mark in marks]
    over = "correlation, of answers to one prompt" if found.get("prompts") else "correlation, over all prompts"
    yield Chart("exploits", title, over, "", series, _difference(marks), y_names=names)


def _difference(marks: Sequence[Mapping[str, Any]]) -> str:
    """Say where a naive reward would pull a policy most that this one would not."""
    both = [mark for mark in marks if mark["naive"] is not None]
    apart = [mark for mark in both if _disjoint(mark["naive"], mark["ours"])]
    if not apart:
        return ""
    most = max(apart, key=lambda mark: abs(mark["naive"]["correlation"] - mark["ours"]["correlation"]))
    ours, naive = (signed(most[kind]["correlation"]) for kind in ("ours", "naive"))
    return f"The two differ most in {most['name']}: {naive} for naive, {ours} for this reward."


def _disjoint(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return one["low"] > other["high"] or other["low"] > one["high"]


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign, as people write it; what rounds to 0 has none.

    Examples:
        >>> signed(0.4167), signed(-0.001)
        ('+0.42', '0.00')
    """
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "\u2212")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


_CAUSES = {  # in a title, and as the name of the axis
    "time": ("the time", "tenth of the time, from the first to the last"),
    "place in session": ("the place in the session", "place in the session"),
    "segments": ("the segment", "segment"),
    "session": ("the session", "how much the session's other rows act, by fifths"),
    "user activity": ("the user", "how much the user's other rows act, by fifths"),
}
_PLACE = re.compile(r"places? (\d+)(?: to (\d+)| (and later))?")


def context(tests: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield for each cause beside the response that was tested how often signals acted, over what was expected."""
    for test in tests:
        if test["name"] not in _CAUSES or not test["details"]:
            continue
        names = list(dict.fromkeys(entry["where"] for entry in test["details"]))
        signals = list(dict.fromkeys(entry["signal"] for entry in test["details"]))
        series = [Series("rule", (-0.5, len(names) - 0.5), (1, 1), "", "faint")]
        for number, signal in enumerate(signals):
            own = [entry for entry in test["details"] if entry["signal"] == signal]
            shift = 0.12 * (number - (len(signals) - 1) / 2)
            places = [names.index(entry["where"]) + shift for entry in own]
            ratios = [_ratio(entry) for entry in own]
            ratio, low, high = ([ends[n] for ends in ratios] for n in range(3))
            said = [f"{signal}, {entry['where']}: {entry['rows']:,} proven rows" for entry in own]
            series.append(Series("points", places, ratio, signal, IN_TURN[number % 4], low, high, said))
        cause, axis = _CAUSES[test["name"]]
        if test["result"] == "failed":
            title = f"Propensities move with {cause}, which the model does not know"
        elif test["text"].startswith("modelled"):
            title = f"Propensities move with {cause}, which the model knows"
        else:
            title = f"Propensities hardly move with {cause}"
        shown, note = _bin_names(test["name"], names)
        chart_name = f"context-{test['name'].replace(' ', '-')}"
        yield Chart(chart_name, title, axis, "acted, times expected", series, note, x_names=shown)


def _bin_names(cause: str, names: Sequence[str]) -> tuple[list[str], str]:
    """Return short names of the bins of a cause for an axis, and a note on them."""
    if cause == "place in session" and all(found := [_PLACE.fullmatch(name) for name in names]):
        parts = [match.groups() for match in found if match]
        return [f"{a}\u2013{b}" if b else f"{a}+" if later else a for a, b, later in parts], ""
    numbers = [str(number + 1) for number in range(len(names))]
    if cause == "segments":
        return numbers, "; ".join(f"{number}: {name}" for number, name in zip(numbers, names, strict=True))
    return numbers, ""


def _ratio(entry: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return observed over expected actions, with the ends of its 95% interval."""
    expected = max(entry["expected"], 1e-9)
    low, high = _interval(entry["observed"], entry["rows"])
    return entry["observed"] / expected, low / expected, high / expected
