"""Policies optimised against rewards: the made world, the policy, the run that resumes, and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from irm_fast.experiments.downstream import rewards
from irm_fast.experiments.downstream import run as running
from irm_fast.experiments.downstream.pairs import Classifier, pairs_of, train_on_pairs
from irm_fast.experiments.downstream.policy import prompt_of
from irm_fast.experiments.downstream.report import Curve, draw, markdown, table
from irm_fast.experiments.downstream.rewards import (
    EXPLICIT,
    KNOWN,
    NAIVE,
    OURS,
    PAIRS,
    PAPER,
    PENALISED,
    REWARDS,
    Reward,
    seen,
)
from irm_fast.experiments.downstream.settings import SMALL, make_world
from irm_fast.experiments.downstream.users import outcome, outcomes
from irm_fast.experiments.made_answers import BAIT, conversation, prompts, quality, sentences_of, visible_features
from irm_fast.experiments.report import share_with_interval
from irm_fast.experiments.tiny_decoder import make_tiny_decoder

LAMP = "7. How do I fix my lamp?"


# The world


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First unplug the lamp.", 4.0),
        ("First unplug the lamp. First unplug the lamp.", 2.0),  # said twice
        ("Clean the bulb with a cloth. Clean the plug with a cloth.", 4.0),
        ("First unplug the oven.", 0.0),  # not what was asked
        ("First unplug", 0.0),  # nobody knows it
        ("- First unplug the lamp.\n- There are many colours.", 2.0),
        ("First unplug the lamp. Share it with a friend!", 0.0),  # bait takes back what helps
        ("Your bulb is your fault.", -4.0),
        ("", -4.0),
        ("-", -4.0),
    ],
)
def test_quality_is_read_off_the_text(text, expected) -> None:
    assert quality([conversation(LAMP, text)]).tolist() == [expected]


def test_every_made_sentence_is_read_back() -> None:
    """The marks of a list and the places of bait do not change what a sentence is."""
    world = make_world(SMALL, 0)
    for turns in world.answers[:200]:
        for sentence in sentences_of(turns[1]["content"]):
            assert sentence in BAIT or (not sentence.startswith("-") and sentence.endswith("."))
    visible = visible_features(world.answers)
    said = np.array([sum(turns[1]["content"].count(bait) for bait in BAIT) for turns in world.answers])
    np.testing.assert_array_equal(visible[:, 2], said)
    assert 0.2 < visible[:, 1].mean() < 0.5 and 0.8 < visible[:, 2].mean() < 1.2


def test_signals_are_independent_once_an_answer_pleases() -> None:
    """Who is pleased acts as often as the propensity says, and both signals together as often as their product."""
    for seed in range(3):
        simulation = make_world(SMALL, seed).simulation
        pleased = simulation.truth.preference == 1
        chance, acted = simulation.propensity[pleased], simulation.log.feedback[pleased]
        for p, f in ((chance[:, 0], acted[:, 0]), (chance[:, 1], acted[:, 1]), (chance.prod(1), acted.prod(1))):
            assert abs((f - p).sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_users_act_only_when_pleased_and_at_the_rate() -> None:
    world = make_world(SMALL, 0)
    simulation = world.simulation
    assert not simulation.log.feedback[simulation.truth.preference == 0].any()
    np.testing.assert_allclose(simulation.propensity.mean(axis=0), SMALL.rate, atol=1e-9)
    pleased = simulation.truth.preference.mean()
    assert pleased == pytest.approx((1 / (1 + np.exp(-quality(world.answers)))).mean(), abs=0.05)
    plain, fishing = (
        conversation(LAMP, text) for text in ("First unplug the lamp.", "First unplug the lamp. " + BAIT[1])
    )
    assert (world.users.propensity([fishing]) > 2 * world.users.propensity([plain])).all()


def test_worlds_differ_by_seed_alone() -> None:
    first, again, other = (make_world(SMALL, seed) for seed in (0, 0, 1))
    assert first.answers == again.answers and (first.simulation.log.feedback == again.simulation.log.feedback).all()
    assert first.answers != other.answers
    assert not set(first.asked) & set(first.held_out)
    assert prompts(3, 0) == prompts(3, 0) and len(set(prompts(300, 0))) == 300


def test_outcomes_are_weighted() -> None:
    world = make_world(SMALL, 0)
    best, worst = conversation(LAMP, "First unplug the lamp."), conversation(LAMP, "Your bulb is your fault.")
    mean, first, second = outcomes(world.users, [best, worst], [np.array(w) for w in ([0.5, 0.5], [1, 0], [0, 1])])
    assert mean == outcome(world.users, [best, worst])
    assert first.pleases == pytest.approx(1 / (1 + np.exp(-4))) and second.pleases == pytest.approx(1 / (1 + np.exp(4)))
    assert mean.pleases == pytest.approx((first.pleases + second.pleases) / 2)
    act = 1 - np.prod(1 - world.users.propensity([best]))
    assert first.acts == pytest.approx(first.pleases * act) and first.bait == 0


# Rewards


def test_what_each_method_sees() -> None:
    simulation = make_world(SMALL, 0).simulation
    acted = simulation.log.feedback.max(axis=1)
    assert (seen(NAIVE, simulation)[0].preference == acted).all() and not seen(NAIVE, simulation)[0].signals
    paper, how = seen(PAPER, simulation)
    assert paper.feedback.shape[1] == 1 and how["objective"] == "stratified"
    ours, how = seen(OURS, simulation)
    assert ours is simulation.log and not how and ours.propensity is None and (ours.preference == -1).all()
    np.testing.assert_allclose(seen(KNOWN, simulation)[0].propensity, simulation.propensity, rtol=1e-6)
    assert (seen(EXPLICIT, simulation)[0].preference == simulation.truth.preference).all()


def test_length_is_taken_out(monkeypatch) -> None:
    """Over the log's answers the penalised reward does not go with length; the naive one does."""
    answers = make_world(SMALL, 0).answers
    length = visible_features(answers)[:, 0]
    asked = []
    monkeypatch.setattr(rewards, "load", lambda folder: asked.append(folder))
    monkeypatch.setattr(rewards, "score", lambda model, rows: 3 * visible_features(rows)[:, 0] + quality(rows))
    naive, penalised = (Reward(name, Path("rewards"), answers)(answers) for name in (NAIVE, PENALISED))
    assert abs(np.corrcoef(naive, length)[0, 1]) > 0.3 and abs(np.corrcoef(penalised, length)[0, 1]) < 1e-9
    assert asked == [Path("rewards") / NAIVE] * 2


def test_pairs_are_of_one_question() -> None:
    log = make_world(SMALL, 0).simulation.log
    pairs = pairs_of(log)
    texts = [prompt_of(messages[0]["content"]) + messages[1]["content"] for messages in log.messages]
    acted = dict(zip(texts, log.feedback.max(axis=1), strict=True))
    assert len(pairs["chosen"]) == len(pairs["rejected"]) > 20
    for chosen, rejected in zip(pairs["chosen"], pairs["rejected"], strict=True):
        assert chosen.split("\n")[0] == rejected.split("\n")[0]
        assert (acted[chosen], acted[rejected]) == (1, 0)


def test_trl_ranks_by_its_pairs(tmp_path) -> None:
    """Trained on pairs of long against short answers it prefers long ones, padded in a batch or alone."""
    pytest.importorskip("trl")
    world = make_world(SMALL, 0)
    length = visible_features(world.answers)[:, 0]
    log = replace(world.simulation.log, feedback=(length > np.median(length))[:, None].astype(np.int8))
    texts = (turn["content"] for turns in world.answers for turn in turns)
    make_tiny_decoder(texts, tmp_path / "decoder", hidden_size=32)
    train_on_pairs(log, tmp_path / "decoder", tmp_path / "rm", epochs=2, seed=0)
    classifier = Classifier(tmp_path / "rm")
    found = classifier(world.answers)
    assert np.corrcoef(found, length)[0, 1] > 0.5
    np.testing.assert_allclose([classifier([answer])[0] for answer in world.answers[:5]], found[:5], atol=1e-5)


# The policy


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory) -> Path:
    pytest.importorskip("trl")
    from irm_fast.experiments.downstream.policy import train_policy

    folder = tmp_path_factory.mktemp("policy") / "policy"
    train_policy(make_world(SMALL, 0).answers[:480], folder, width=32, epochs=6, seed=0)
    return folder


def test_divergence_is_that_of_the_drawn_tokens(policy_folder) -> None:
    """Each answer alone, without padding, has the probability that the block gives it."""
    import torch

    from irm_fast.experiments.downstream.policy import Policy

    policy = Policy.load(policy_folder)
    questions = [LAMP, "My bike is broken.", "12. Help with a router, please."]
    drawn = policy.draw(questions, seed=1)
    assert [turns[0]["content"] for turns in drawn.conversations] == questions
    assert (
        drawn.conversations == policy.draw(questions, seed=1).conversations != policy.draw(questions, 2).conversations
    )
    found = policy.log_probability(drawn)
    pad = policy.tokenizer.pad_token_id
    for row, question in enumerate(questions):
        prompt = policy.tokenizer(prompt_of(question), return_tensors="pt")["input_ids"][0]
        answer = drawn.tokens[0][row, drawn.asked[0] :]
        answer = answer[answer != pad]
        with torch.no_grad():
            logits = policy.model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        alone = logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum()
        assert found[row] == pytest.approx(float(alone), abs=1e-3)


def test_a_policy_moves_towards_its_reward(policy_folder) -> None:
    """Short answers are paid: they get shorter, the divergence grows from 0, and what was asked for is measured."""
    from irm_fast.experiments.downstream.grpo import optimise

    how = replace(SMALL.optimisation, steps=8, every=4, questions=8, answers=8, learning_rate=1e-2, penalty=0.0)
    points = optimise(policy_folder, lambda rows: -visible_features(rows)[:, 0], make_world(SMALL, 0), how, seed=0)
    assert [point["step"] for point in points] == [0, 4, 8]
    assert points[0]["divergence"] == pytest.approx(0, abs=1e-4) and points[-1]["divergence"] > 0.05
    assert points[-1]["score"] > points[0]["score"] + 0.1
    assert points[-1]["features"]["log length"] < points[0]["features"]["log length"]


# The run


@pytest.fixture
def pieces(monkeypatch):
    """Pieces that take no time, and what was done of them."""
    done = []

    def leave(job, settings) -> None:
        done.append((job.kind, job.seed, job.name))
        if job.place.suffix != ".json":
            job.place.mkdir()
        elif job.kind == "policy":
            job.place.write_text(json.dumps([_point(step, 0.5 + job.seed / 100) for step in (0, 1)]))
        else:
            job.place.write_text(json.dumps([{"reward": name, "n": 16, **_worth(0.6)} for name in REWARDS]))

    monkeypatch.setattr(running, "_PIECES", dict.fromkeys(running._PIECES, leave))
    monkeypatch.setattr(running, "need", lambda *_: None)
    return done


def _worth(pleases: float) -> dict[str, object]:
    return {"pleases": pleases, "acts": 0.2, "features": {"bait": 0.0}, "bait": 1.0}


def _point(step: int, pleases: float) -> dict[str, object]:
    return {"step": step, "divergence": float(step), "score": 0.0, **_worth(pleases)}


def test_a_run_goes_on_where_it_ended(tmp_path, pieces) -> None:
    output = tmp_path / "out"
    points = running.run_downstream(output, SMALL, seeds=2, processes=1)
    assert len(points) == 2 * len(REWARDS) * 3 and len(pieces) == 2 * (1 + 6 + len(REWARDS) + 1)
    order = [kind for kind, *_ in pieces]
    assert order.index("reward") == 2 and order.index("policy") == 2 + 2 * 6
    (output / "seed-1" / "policies" / f"{OURS}.json").unlink()
    pieces.clear()
    with pytest.raises(ValueError, match="--resume goes on with it, --overwrite replaces it"):
        running.run_downstream(output, SMALL, seeds=2, processes=1)
    with pytest.raises(ValueError, match=r"prompts: got 301; .* was run with 300"):
        running.run_downstream(output, replace(SMALL, prompts=301), seeds=2, processes=1, resume=True)
    assert running.run_downstream(output, SMALL, seeds=2, processes=1, resume=True) == points
    assert pieces == [("policy", 1, OURS)]
    running.run_downstream(output, SMALL, seeds=3, processes=1, resume=True)
    assert {seed for _, seed, _ in pieces[1:]} == {2}
    (output / "seed-2" / "policies" / f"{OURS}.json").unlink()  # half done: it is not of a run of two
    assert running.run_downstream(output, SMALL, seeds=2, processes=1, resume=True) == points
    left = output / "seed-1" / ".unfinished policy"  # by a run that was killed
    left.mkdir()
    (output / "seed-1" / "policy").rmdir()
    running.run_downstream(output, SMALL, seeds=2, processes=1, resume=True)
    assert pieces[-1] == ("start", 1, "") and not left.exists()
    report = running.write_report(points, output)
    assert (output / "downstream.md").read_text() in report and "wrote" in report
    pieces.clear()
    running.run_downstream(output, SMALL, seeds=2, processes=1, overwrite=True)
    assert len(pieces) == 2 * (1 + 6 + len(REWARDS) + 1) and not (output / "downstream.md").exists()


def test_what_is_refused(tmp_path, pieces) -> None:
    with pytest.raises(ValueError, match="seeds: got 1; expected 2 or more"):
        running.run_downstream(tmp_path / "out", SMALL, seeds=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds no earlier run"):
        running.run_downstream(tmp_path / "mine", SMALL, seeds=2, overwrite=True)
    assert not pieces


# The report

CURVES = {  # how often answers please, at steps 0, 10 and 20
    NAIVE: (0.4, 0.7, 0.5),
    PENALISED: (0.4, 0.6, 0.6),
    PAIRS: (0.4, 0.6, 0.65),
    PAPER: (0.4, 0.5, 0.45),
    OURS: (0.4, 0.7, 0.8),
    KNOWN: (0.4, 0.75, 0.8),
    EXPLICIT: (0.4, 0.8, 0.9),
}


def _points(seeds: int = 3) -> list[dict[str, object]]:
    points = []
    for seed in range(seeds):
        for name, curve in CURVES.items():
            for step, pleases in enumerate(curve):
                point = {"seed": seed, "curve": "policy", "reward": name, **_point(step, pleases + seed / 100)}
                points.append(point | {"divergence": 2.0 * step})
            for n, pleases in ((1, 0.4), (16, curve[1]), (64, curve[2])):
                points.append({"seed": seed, "curve": "best of n", "reward": name, "n": n, **_worth(pleases)})
    return points


def test_the_table() -> None:
    head, _, *rows = (line.strip("| ").split("|") for line in table(_points()).splitlines())
    cells = {
        row[0].strip(): dict(zip((h.strip() for h in head), (c.strip() for c in row), strict=True)) for row in rows
    }
    assert list(cells) == list(REWARDS)
    naive, ours = cells[NAIVE], cells[OURS]
    assert naive["pleases"] == "0.410 to 0.510" and naive["gain"] == "20% ± 0" and naive["turns over"] == "2.0"
    assert (naive["best"], naive["at"]) == ("0.710", "2.0")
    assert ours["gain"] == "80% ± 0" and ours["turns over"] == "-" and cells[EXPLICIT]["gain"] == "100%"
    assert ours["best of 16"] == "0.700" and cells[KNOWN]["to known"] == "100%" and ours["to known"] == "0%"
    assert "mean over 3 worlds" in markdown(_points())


def test_intervals_of_shares_are_of_the_worlds() -> None:
    """Half of the distance on average: exactly so everywhere, or by chance."""
    low, high = np.zeros(4), np.array([0.4, 0.5, 0.6, 0.5])
    assert share_with_interval(high / 2, low, high, least=0.01) == "50% ± 0"
    half = share_with_interval(np.array([0.1, 0.35, 0.2, 0.35]), low, high, least=0.01)
    assert half.startswith("50% ± ") and 10 < float(half.removeprefix("50% ± ")) < 60
    assert share_with_interval(low, low, high, least=0.01) == "0%"
    assert share_with_interval(high, low, low, least=0.01) == "-"


def test_no_share_of_a_gain_that_is_none() -> None:
    flat = [point | {"pleases": 0.5} for point in _points()]
    assert "nan" not in table(flat) and "| -" in table(flat)


def test_the_pictures(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    drawn = draw(_points(), tmp_path)
    assert [path.name for path in drawn] == ["downstream.png", "divergence.png", "best_of_n.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert Curve(_points(), "policy", OURS).of("pleases").shape == (3, 3)
