"""The headline: the worst that is known decides its light, and what to do begins with what matters most."""

from __future__ import annotations

from typing import Any

import pytest

from irm_fast.publish.verdict import headline


def diagnosis(kind: str, **more: Any) -> dict[str, Any]:
    rest = {"verdict": f"{kind}, as said", "remedies": ["Log more."], "learned": "learned"}
    rest["sensitivity"] = {"mean_g_range": [0.2, 0.6], "mean_g": 0.4}
    return {"kind": kind, "ranking": kind, "scale": kind, **rest, **more}


@pytest.mark.parametrize(
    ("given", "light", "title"),
    [
        (diagnosis("identified"), "good", "The reward is identified"),
        (diagnosis("conditional"), "fair", "The reward is identified if the signals are independent"),
        (diagnosis("not identified"), "bad", "The reward is not identified by this log"),
        (diagnosis("contradicted"), "bad", "The log contradicts what this reward rests on"),
        (
            diagnosis("contradicted", ranking="conditional"),
            "fair",
            "The reward can rank; the log contradicts its level",
        ),
        (diagnosis("not learned", learned="not learned"), "bad", "The reward was not learned"),
        (diagnosis("identified", learned="not learned"), "bad", "The reward is identified; it was not learned"),
        (
            diagnosis("identified", learned="not tested"),
            "fair",
            "The reward is identified; nobody has tested whether it was learned",
        ),
    ],
)
def test_light_and_title(given, light, title):
    found = headline(given, None)
    assert (found.light, found.title) == (light, title)
    assert found.words == f"The reward is {given['verdict']}."
    assert "Log more." in found.steps and found.steps[0] != "Log more."


def test_who_is_not_to_use_it_is_not_told_to_look_before_use():
    good, bad = headline(diagnosis("identified"), None), headline(diagnosis("not identified"), None)
    assert "read the best and the worst answers" in good.steps[-1] and bad.steps[-1] == "Log more."


def test_parts_of_the_verdict_are_by_themselves():
    given = diagnosis("contradicted", ranking="conditional")
    tiles = headline(given, (0.1249, 0.031)).tiles
    assert [tile.light for tile in tiles] == ["fair", "bad", "good", "fair"]
    assert tiles[2].note == "by 0.12 nats an action, standard error 0.03"
    assert tiles[3].answer == "20% to 60%"
    fixed = diagnosis("identified", sensitivity={"mean_g_range": None, "mean_g": 0.4})
    assert headline(fixed, None).tiles[3][1:] == ("good", "40%", "")
    nothing = diagnosis("identified", sensitivity={"mean_g_range": None, "mean_g": None})
    assert len(headline(nothing, None).tiles) == 3


def test_rewards_that_hardly_differ_are_said():
    told = [step for step in headline(diagnosis("conditional"), None, 0.0123).steps if "hardly differ" in step]
    assert len(told) == 1 and "standard deviation 0.012 logits" in told[0]
    assert not any("hardly differ" in step for step in headline(diagnosis("conditional"), None, 0.5).steps)
