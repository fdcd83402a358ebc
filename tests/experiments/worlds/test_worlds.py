"""Which method is worth it in which log: the worlds and their logs, the methods, the run that resumes, the report."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from irm_fast.experiments import run_folder
from irm_fast.experiments.worlds import run as running
from irm_fast.experiments.worlds.drawing import FLATTERED, PER_SESSION, PER_USER
from irm_fast.experiments.worlds.knobs import WORLDS, World
from irm_fast.experiments.worlds.methods import METHODS, OURS, PEERS, TOLD, Entrants
from irm_fast.experiments.worlds.picture import draw
from irm_fast.experiments.worlds.table import Table, markdown, write_csv
from irm_fast.experiments.worlds.texts import make_texts
from tests.experiments.worlds.small_worlds import BY_NAME, ROWS, TEST, drawn_log

# The worlds


def _expected(acted: np.ndarray, chance: np.ndarray) -> bool:
    """Whether as many act as there should be, within four deviations."""
    return bool(abs((acted - chance).sum()) < 4 * np.sqrt((chance * (1 - chance)).sum()))


def test_each_world_turns_one_knob() -> None:
    assert len({world.name for world in WORLDS}) == len(WORLDS) and replace(WORLDS[0], name="") == World("")
    for world in WORLDS[1:]:
        turned = [name for name, value in vars(world).items() if value != getattr(WORLDS[0], name)]
        assert len(turned) == (3 if world.sessions else 2)  # the name, and sessions beside users


def test_texts_are_the_same_each_time(texts) -> None:
    make_texts.cache_clear()
    again = make_texts(TEST + ROWS, 0)
    for name, values in vars(texts).items():
        np.testing.assert_array_equal(getattr(again, name), values)
    assert len(texts.X) == TEST + ROWS and texts.X.dtype == np.float32
    assert set(texts.group[:TEST]).isdisjoint(texts.group[TEST:])  # no question is in the log and in the test set
    assert (texts.quality[texts.bait] < 4).all()  # bait is no help


def test_the_base(texts) -> None:
    """Signals act only when an answer pleases, as often as the propensity says, each for itself."""
    drawn = drawn_log("base", texts)
    truth, feedback = drawn.redraw.truth, drawn.redraw.log.feedback
    pleased = truth.preference == 1
    assert not feedback[~pleased].any()
    np.testing.assert_allclose(truth.propensity.mean(axis=0), WORLDS[0].rate, atol=1e-9)
    chance, acted = truth.propensity[pleased], feedback[pleased]
    assert _expected(acted[:, 0], chance[:, 0]) and _expected(acted[:, 1], chance[:, 1])
    assert _expected(acted.prod(axis=1), chance.prod(axis=1))
    assert _expected(truth.preference, 1 / (1 + np.exp(-texts.quality[TEST:])))
    np.testing.assert_array_equal(drawn.recorded, feedback)
    np.testing.assert_allclose(drawn.please, 1 / (1 + np.exp(-texts.quality[:TEST])))
    assert set(Counter(drawn.users).values()) == {PER_USER} and len(set(drawn.sessions)) == ROWS // 5
    assert (drawn.users.astype(int) == drawn.sessions.astype(int) // 2).all()


def test_what_drives(texts) -> None:
    bait = texts.drivers[TEST:, 2]
    base, none, twice, liked = (
        drawn_log(name, texts).redraw.truth.propensity[:, 0]
        for name in ("base", "nothing draws", "drives twice as much", "drives what is liked")
    )
    assert np.ptp(none) < 1e-12 and np.corrcoef(bait, base)[0, 1] > 0.5 and np.corrcoef(bait, liked)[0, 1] < -0.5
    assert twice.std() > 1.3 * base.std()


def test_rates_and_signals(texts) -> None:
    for name in ("rare actions (3%)", "frequent actions (50%)"):
        propensity = drawn_log(name, texts).redraw.truth.propensity
        np.testing.assert_allclose(propensity.mean(axis=0), BY_NAME[name].rate, atol=1e-9)
    assert drawn_log("one signal", texts).redraw.log.feedback.shape == (ROWS, 1)


@pytest.mark.parametrize("name", ["unequal users", "unequal users and sessions", "a hidden mood"])
def test_activity(texts, name) -> None:
    """Users, sessions or rows differ by as much as they should, beside what drives all alike."""
    world, drawn = BY_NAME[name], drawn_log(name, texts)
    logit = np.log(drawn.redraw.truth.propensity / (1 - drawn.redraw.truth.propensity))
    base = drawn_log("base", texts).redraw.truth.propensity
    activity = logit - np.log(base / (1 - base))
    np.testing.assert_allclose(
        activity[:, 0] - activity[:, 0].mean(), activity[:, 1] - activity[:, 1].mean(), atol=1e-9
    )
    expected = np.sqrt(world.users**2 + world.sessions**2 + world.moods**2)
    assert activity[:, 0].std() == pytest.approx(expected, rel=0.15)
    sessions = np.array([activity[drawn.sessions == str(session), 0].mean() for session in range(ROWS // PER_SESSION)])
    of_users, apart = sessions.reshape(-1, 2).mean(axis=1), np.diff(sessions.reshape(-1, 2))
    of_one = world.sessions**2 + world.moods**2 / PER_SESSION  # the variance of the mean of a session, beside its user
    assert apart.std() == pytest.approx(np.sqrt(2 * of_one), rel=0.15, abs=1e-9)
    assert of_users.std() == pytest.approx(np.sqrt(world.users**2 + of_one / 2), rel=0.15)


def test_misclicks(texts) -> None:
    name = "misclicks (10%)"
    drawn = drawn_log(name, texts)
    silent = drawn.redraw.truth.preference == 0
    acted, chance = drawn.redraw.log.feedback[silent], drawn.redraw.truth.propensity[silent]
    assert _expected(acted[:, 0], BY_NAME[name].misclicks * chance[:, 0]) and acted.any()


def test_a_funnel(texts) -> None:
    drawn = drawn_log("funnel", texts)
    first, second = drawn.redraw.log.feedback.T
    assert not (second > first).any() and second.any()
    np.testing.assert_array_equal(drawn.recorded[:, 1], np.where(first == 1, second, -1))


def test_answers_that_escape(texts) -> None:
    best = texts.quality[TEST:] >= BY_NAME["the best answers escape"].escape
    drawn = drawn_log("the best answers escape", texts)
    assert 0.02 < best.mean() < 0.2 and not drawn.redraw.log.feedback[best].any()


def test_flattery(texts) -> None:
    """A few users act on bait whether it pleases or not, and on nothing else more than others."""
    drawn = drawn_log("2% reward flattery", texts)
    acted = drawn.redraw.log.feedback[:, 0] == 1
    unpleased = acted & (drawn.redraw.truth.preference == 0)
    assert unpleased.any() and texts.bait[TEST:][unpleased].all()
    assert 0 < len(set(drawn.users[unpleased])) < 0.05 * len(set(drawn.users))
    theirs = np.isin(drawn.users, drawn.users[unpleased]) & texts.bait[TEST:]
    assert acted[theirs].mean() == pytest.approx(FLATTERED, abs=0.1)


def test_length_that_is_liked(texts) -> None:
    """The same users act, each by what pleases now: on long answers more often."""
    base, drawn = drawn_log("base", texts), drawn_log("length is liked too", texts)
    np.testing.assert_array_equal(drawn.redraw.truth.propensity, base.redraw.truth.propensity)
    logit, of_base = (np.log(please / (1 - please)) for please in (drawn.please, base.please))
    np.testing.assert_allclose(logit - of_base, texts.drivers[:TEST, 0], atol=1e-9)
    assert _expected(drawn.redraw.truth.preference, 1 / (1 + np.exp(-texts.quality - texts.drivers[:, 0]))[TEST:])


def test_topics_that_draw(texts) -> None:
    logits = [
        np.log(propensity / (1 - propensity))
        for propensity in (drawn_log(name, texts).redraw.truth.propensity for name in ("base", "topics draw too"))
    ]
    drawn = logits[1] - logits[0]
    topic = texts.topic[TEST:]
    of_topic = np.array([drawn[topic == number].mean(axis=0) for number in range(topic.max() + 1)])
    np.testing.assert_allclose(drawn, of_topic[topic], atol=1e-9)
    assert 0.5 < of_topic[:, 0].std() < 3 and len(of_topic) > 3
    np.testing.assert_allclose(np.ptp(of_topic, axis=0)[0], np.ptp(of_topic, axis=0)[1])


# The run


@pytest.fixture
def fits(monkeypatch):
    """Methods that take no time, and the worlds in which they were fitted."""
    done = []

    def measured(self, name):
        done.append((self._world.name, len(self._drawn.users), self._seed))
        return {"auroc": 0.6, "picks": 0.5, "seconds": 0.0}

    monkeypatch.setattr(Entrants, "methods", lambda self: ("naive", OURS))
    monkeypatch.setattr(Entrants, "measured", measured)
    monkeypatch.setattr(Entrants, "said", lambda self: SAID)
    return done


def _run(output, **how):
    return running.run_worlds(output, **{"rows": (300,), "redraws": 2, "test": 30, "processes": 1, **how})


def test_a_run_goes_on_where_it_ended(tmp_path, fits, monkeypatch) -> None:
    output = tmp_path / "out"
    results = _run(output)
    assert len(results) == 2 * len(WORLDS) and len(fits) == 2 * len(results)
    assert [world for world, *_ in fits[::2]] == [world.name for world in WORLDS] * 2
    with pytest.raises(ValueError, match="--resume goes on with it, --overwrite replaces it"):
        _run(output)
    with pytest.raises(ValueError, match=r"test: got 33; .* was run with 30"):
        _run(output, test=33, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "__version__", "9.9")
        with pytest.raises(ValueError, match=r"version: got '9\.9'; .* install irm-fast .* or --overwrite"):
            _run(output, resume=True)
    (output / "logs" / "03-300-1.json").unlink()
    fits.clear()
    assert _run(output, resume=True) == results and set(fits) == {(WORLDS[3].name, 300, 1)}
    fits.clear()
    more = _run(output, rows=(300, 330), redraws=3, resume=True)
    assert len(more) == 6 * len(WORLDS) and {(rows, seed) for _, rows, seed in fits} == {
        (300, 2), (330, 0), (330, 1), (330, 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"redraws": 1}, "redraws: got 1; expected 2 or more"),
        ({"rows": (299,)}, "rows: got 299; expected 300 or more"),
        ({"test": 31}, "test: got 31; expected a multiple of 3"),
        ({"test": 15}, "from 16 on"),
        ({"resume": True, "overwrite": True}, "resume"),
    ],
)
def test_what_is_refused(tmp_path, fits, how, match) -> None:
    with pytest.raises(ValueError, match=match):
        _run(tmp_path / "out", **how)
    assert not fits


# The report

SAID = {
    "ranking": "conditional", "scale": "contradicted", "context": ["user"], "is_linear": True,
    "propensity": [0.25, 0.3], "true_propensity": [0.15, 0.15], "preference": 0.2, "true_preference": 0.4,
}  # fmt: skip
LEVELS = {"naive": 0.5, "pairs": 0.52, OURS: 0.7, "KTO": 0.7, "explicit labels": 0.9}


def _results(rows: int = 300, ahead: float = 0.0) -> list[dict]:
    """Three redraws of two worlds: in the second, KTO is ahead by so much."""
    return [
        {
            "world": world,
            "rows": rows,
            "redraw": redraw,
            "acts": [0.1, 0.2],
            "methods": {
                name: {
                    "auroc": LEVELS.get(name, 0.4) + redraw / 100 + (name == "KTO") * (step + (-1) ** redraw / 1000),
                    "picks": LEVELS.get(name, 0.4),
                    "seconds": 1.0,
                }
                for name in METHODS
                if name != TOLD
            },
            "said": SAID | {"ranking": "not identified", "context": []} if redraw == 1 else SAID,
        }
        for world, step in (("base", 0.0), ("funnel", ahead))
        for redraw in range(3)
    ]


def test_who_is_worth_it() -> None:
    """Bounds and forms of the estimator do not compete; a difference within the interval is none."""
    table = Table(_results(ahead=0.05), 300)
    assert table.worlds == ["base", "funnel"] and table.redraws == 3
    assert table.worth_it("base", "auroc") == ["KTO", OURS] and table.worth_it("funnel", "auroc") == ["KTO"]
    gain = table.gain("funnel", "auroc", "KTO")
    differences = np.array([0.001, -0.001, 0.001]) + 0.05  # by which KTO is ahead
    assert gain.mean == pytest.approx(-differences.mean(), abs=1e-12)
    assert gain.half == pytest.approx(4.302652729911275 * differences.std(ddof=1) / np.sqrt(3))  # t of 2, 97.5%
    assert table.best("funnel", "auroc", PEERS) == "KTO" and table.values("base", TOLD, "auroc") is None


def test_the_tables() -> None:
    text = markdown([*_results(ahead=0.05), *_results(rows=600)])
    assert "### 300 rows, 3 redraws" in text and "### 600 rows, 3 redraws" in text
    ahead = next(line for line in text.split("AUROC of what pleases")[1].splitlines() if line.startswith("| funnel"))
    assert "**+0.200 ± 0.000**" in ahead and "**-0.050 ± 0.003** KTO" in ahead and "nan" not in text
    cells = [
        cell.strip() for cell in text.split("### 300 rows, 3 redraws: AUROC")[1].splitlines()[4].strip("|").split("|")
    ]
    assert cells[:2] == ["base", "0.100 0.200"] and cells[2 + METHODS.index(TOLD)] == ""
    assert cells[2 + METHODS.index(OURS)] == "**0.710**" and cells[2 + METHODS.index("explicit labels")] == "0.910"
    mean = next(line for line in text.split("### 300 rows, 3 redraws: AUROC")[1].splitlines() if "mean of all" in line)
    cells = [cell.strip() for cell in mean.strip("|").split("|")]
    assert cells[2 + METHODS.index("KTO")] == "**0.735**" and cells[2 + METHODS.index("naive")] == "0.510"
    assert cells[1] == cells[2 + METHODS.index(TOLD)] == ""
    said = text.split("### 300 rows: what irm_fast says of itself")[1].splitlines()[4]
    assert [cell.strip() for cell in said.strip("|").split("|")] == [
        "base", "conditional 2, not identified 1", "contradicted 3", "user 2, none 1", "3 of 3", "0.25 0.30",
        "0.15 0.15", "0.20", "0.40",
    ]  # fmt: skip


def test_files(tmp_path) -> None:
    results = [*_results(), *_results(rows=600)]
    write_csv(results, tmp_path / "worlds.csv")
    lines = list(csv.DictReader((tmp_path / "worlds.csv").open(encoding="utf-8")))
    assert len(lines) == len(results) * (len(METHODS) - 1)
    assert lines[0] == {
        "world": "base", "rows": "300", "redraw": "0", "method": "naive", "bound": "0", "picks": "0.5",
        "auroc": "0.5", "seconds": "1.0",
    }  # fmt: skip
    pytest.importorskip("matplotlib")
    assert draw(results, tmp_path / "worlds.png").stat().st_size > 10_000
