"""Charts: round numbers on the axes, marks where the values are, titles that say what is seen."""

from __future__ import annotations

import re

import pytest

from irm_fast.publish import pictures
from irm_fast.publish.charts import Chart, Series, ticks
from irm_fast.publish.svg import HEIGHT, WIDTH, as_svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.3, 0.31, [-0.2, 0, 0.2]),
        (3.18431, 3.18474, [3.1844, 3.1845, 3.1846, 3.1847]),
        (0, 700, [0, 200, 400, 600]),
    ],
)
def test_ticks_are_round_and_within(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def numbers(svg: str, mark: str, attribute: str) -> list[float]:
    return [float(found) for found in re.findall(rf'<{mark} [^>]*\b{attribute}="([-\d.]+)"', svg)]


def test_marks_are_where_the_values_are():
    """Points of values in even steps lie in even steps, and higher values higher up, within the picture."""
    chart = Chart("a", "t", "x", "y", [Series("points", (0, 1, 2), (0, 5, 10), low=(0, 4, 9), high=(1, 6, 12))])
    svg = as_svg(chart)
    x, y = numbers(svg, "circle", "cx"), numbers(svg, "circle", "cy")
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and x[0] < x[1]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2) and y[0] > y[1]
    assert min(x) > 0 and max(x) < WIDTH and min(y) > 0 and max(y) < HEIGHT
    tops = numbers(svg, 'line class="interval c-ours"', "y2")
    assert all(top < point for top, point in zip(tops, y, strict=True))


def test_names_from_above_and_text_is_escaped():
    series = [Series("points", (0.1, 0.2), (0, 1), "<b>", low=(0, 0.1), high=(0.2, 0.3), said=("<i>", "&"))]
    svg = as_svg(Chart("a", 'a "title" <', "x", "", series, y_names=("first", "<second>")))
    assert "&lt;second&gt;" in svg and "&lt;i&gt;" in svg and "<i>" not in svg and "<second>" not in svg
    y = numbers(svg, "circle", "cy")
    assert y[0] < y[1]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_values_that_are_all_alike_are_drawn(value):
    assert "nan" not in as_svg(Chart("a", "t", "x", "y", [Series("line", (1, 2), (value, value))]))


def rewards(low: float, high: float) -> dict:
    entry = {"name": "copy", "acted": [1, 3], "silent": [3, 1], "auroc": 0.7, "auroc_low": low, "auroc_high": high}
    return {"edges": [0, 1, 2], "signals": [entry]}


@pytest.mark.parametrize(
    ("low", "high", "polarity", "title"),
    [
        (0.6, 0.8, 1, "Where copy acted, rewards are higher"),
        (0.6, 0.8, -1, "Where copy acted, rewards are higher, against its meaning"),
        (0.2, 0.4, -1, "Where copy acted, rewards are lower"),
        (0.4, 0.6, 1, "Rewards do not differ beyond chance between rows where copy acted and others"),
    ],
)
def test_titles_say_what_is_seen(low, high, polarity, title):
    [chart] = pictures.by_action(rewards(low, high), {"copy": polarity})
    assert chart.title == title
    assert chart.series[1].y == [25, 75] and "70% of the pairs" in chart.note


def test_the_lowest_held_out_loss_is_named():
    losses = [{"step": step, "loss": 1.0} for step in (5, 15)]
    steps = [*losses, {"step": 10, "eval_nll": 0.9}, {"step": 20, "eval_nll": 0.95}]
    [chart] = pictures.learning(steps)
    assert chart.title == "Held-out loss is lowest, 0.900, at step 10, and higher later: that model was kept"
    [rising] = pictures.learning(steps[:3])
    assert rising.title == "Held-out loss is lowest, 0.900, at step 10"
    [alone] = pictures.learning(steps[:2])
    assert alone.title == "Training loss by step"
    assert not list(pictures.learning([{"train_runtime": 3.0, "step": 20}]))


def deciles(observed: float) -> list[dict]:
    entries = [{"signal": "copy", "predicted": p / 10, "observed": p / 10 * observed, "rows": 400} for p in range(1, 6)]
    return [{"name": "fit: calibration", "details": entries}]


def test_reliability_counts_intervals_that_hold_the_prediction():
    [good], [bad] = list(pictures.reliability(deciles(1.0))), list(pictures.reliability(deciles(0.5)))
    assert good.title == "copy acts about as often as predicted" and good.note.startswith("5 of 5 intervals")
    assert bad.title == "copy does not act as often as predicted" and bad.note.startswith("0 of 5 intervals")
    points = good.series[1]
    assert points.low[4] == pytest.approx(45, abs=0.5) and points.high[4] == pytest.approx(55, abs=0.5)


def effects(result: str, text: str) -> list[dict]:
    where = ["place 1", "places 2 to 3", "place 4 and later"]
    rates = [(0.2, 0.2), (0.1, 0.2), (0.05, 0.2)]
    details = [
        {"signal": "copy", "where": w, "observed": o, "expected": e, "rows": 200}
        for w, (o, e) in zip(where, rates, strict=True)
    ]
    return [{"name": "place in session", "result": result, "text": text, "details": details}]


def test_effects_of_the_context():
    [chart] = pictures.context(effects("failed", "copy acts less"))
    assert chart.title == "Propensities move with the place in the session, which the model does not know"
    assert list(chart.x_names) == ["1", "2\u20133", "4+"]
    assert chart.series[1].y == pytest.approx([1, 0.5, 0.25])
    [chart] = pictures.context(effects("passed", "modelled: copy acts less"))
    assert chart.title.endswith("which the model knows")
    [chart] = pictures.context(effects("passed", "copy acts less"))
    assert chart.title == "Propensities hardly move with the place in the session"


def test_propensities_and_groups_speak_of_the_side_of_a_signal():
    entry = {"name": "s", "edges": [0, 0.5, 1], "counts": [3, 1], "quantiles": [0.1, 0.2, 0.3]}
    [up], [down] = (list(pictures.propensities([entry], {"s": sign})) for sign in (1, -1))
    assert up.title == "Of pleased users 10% to 30% give s, by the response" and "displeased" in down.title
    shares = {"s_PA": 0.1, "s_NA": 0.2, "s_PP": 0.3, "s_NP": 0.4}
    lines = [{"step": step, **shares} for step in (1, 2, 3)]
    [up], [down] = (list(pictures.groups(lines, {"s": sign})) for sign in (1, -1))
    assert up.title == "30% of the rows please, and s is silent"
    assert down.title == "40% of the rows displease, and s is silent"
    assert not list(pictures.groups(lines[:1], {"s": 1}))


def moved(name, low, high):
    both = {"correlation": (low + high) / 2, "low": low, "high": high, "points": 1.0}
    return {"name": name, "share": 0.5, "ours": both, "naive": None}


def test_what_stands_out_is_named_and_nothing_else():
    """The largest correlation may be the least certain: it is not named where its interval holds 0."""
    [chart] = pictures.exploits({"marks": [moved("lists", -0.5, 0.7), moved("links", -0.1, 0.05)]})
    assert chart.title == "No mark stands out: the intervals of all correlations with the reward hold 0"
    [chart] = pictures.exploits({"marks": [moved("lists", -0.5, 0.9), moved("links", -0.1, -0.04)]})
    assert chart.title == "The reward goes most with links: correlation \u22120.07"
