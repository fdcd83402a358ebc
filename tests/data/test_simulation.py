import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from irm_fast.cli.commands import app
from irm_fast.data.rated import Rated
from irm_fast.data.read import read_log, read_rated
from irm_fast.data.simulation import FEATURES, WEIGHTS, simulate, standard_features, write_simulation
from irm_fast.data.validation import validate

WORDS = ["yes", "no", "42", "-", "why?", "great!", "`code`", "then", "3.5", "list"]


def rated_of(n=400, seed=0):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(n)]
    rating = rng.integers(1, 6, n).astype(float)
    rating[:2] = 1, 5
    return Rated(
        ids=[f"r{i}" for i in range(n)],
        messages=[
            [{"role": "user", "content": f"q{i // 2}"}, {"role": "assistant", "content": text}]
            for i, text in enumerate(texts)
        ],
        rating=rating,
        preference=(rating > np.median(rating)).astype(np.int8),
        pair=np.where(np.arange(n) < n // 2, np.arange(n) // 2, -1),
    )


@pytest.mark.parametrize(("alpha", "target"), [(0.5, 0.2), (0.2, 0.2), (0.5, 0.5), (0.2, 0.5), (1.0, 0.3)])
def test_rating_protocol(alpha, target):
    rated = rated_of()
    sim = simulate(rated, protocol="rating", signals=3, alpha=alpha, target=target)
    level = 1 + 4 * (rated.rating - 1) / (5 - 1)
    ratio = sim.propensity / (alpha ** (5 - level))[:, None]
    c = ratio[sim.propensity < 1][0]
    np.testing.assert_allclose(sim.propensity, np.minimum(1, c * alpha ** (5 - level))[:, None].repeat(3, 1))
    np.testing.assert_allclose(sim.propensity.mean(axis=0), target, rtol=1e-12)
    assert sim.log.signals == ("click", "copy", "share") and sim.log.features is None


def test_rating_protocol_saturates():
    assert (simulate(rated_of(), protocol="rating", signals=1, alpha=0.2, target=0.6).propensity == 1).any()


@pytest.mark.parametrize("protocol", ["rating", "feature"])
def test_feedback_is_preference_times_activity(protocol):
    rated = rated_of(20_000)
    sim = simulate(rated, protocol=protocol, signals=4, target=0.4)
    acted = sim.log.feedback == 1
    preferred = rated.preference == 1
    assert not acted[~preferred].any() and set(np.unique(sim.log.feedback)) == {0, 1}
    p = sim.propensity[preferred]
    error = (acted[preferred] - p).mean(axis=0) / np.sqrt((p * (1 - p)).mean(axis=0) / len(p))
    assert np.abs(error).max() < 4
    # Given the propensities, two signals are independent.
    residual = acted[preferred] - p
    scale = np.sqrt((p * (1 - p))[:, :2].prod(axis=1).mean() / len(p))
    assert abs((residual[:, 0] * residual[:, 1]).mean()) < 4 * scale


def test_feature_protocol_reads_the_text_only():
    rated = rated_of()
    sim = simulate(rated, protocol="feature", signals=4, target=0.3)
    np.testing.assert_allclose(sim.propensity.mean(axis=0), 0.3, rtol=1e-12)
    logit = np.log(sim.propensity / (1 - sim.propensity))
    slope = sim.log.features.astype(float) @ WEIGHTS.T
    np.testing.assert_allclose(logit - logit.mean(axis=0), slope - slope.mean(axis=0), atol=1e-9)
    assert logit.std(axis=0).min() > 0.3, "the propensities must differ between responses"
    assert np.abs(np.corrcoef(logit.T) - np.eye(4)).max() < 0.95, "and between signals"

    rating = rated.rating[::-1].copy()
    other = dataclasses.replace(rated, rating=rating, preference=rated.preference[::-1].copy())
    np.testing.assert_array_equal(simulate(other, protocol="feature", signals=4, target=0.3).propensity, sim.propensity)


def test_features():
    texts = ["a", "12 34", "- one\n2. two\n```x```", "why?", "no!", "x" * 10_000]
    features = standard_features([[{"role": "assistant", "content": text}] for text in texts])
    assert features.dtype == np.float32 and features.shape == (6, len(FEATURES))
    assert features.argmax(axis=0).tolist() == [5, 1, 2, 3, 4] and np.abs(features).max() <= 3
    same = standard_features([[{"role": "assistant", "content": "0.1"}]] * 7)
    assert (same == 0).all()


def test_another_signal_leaves_the_others_as_they_were():
    one, four = (simulate(rated_of(), protocol="feature", signals=k, seed=5) for k in (1, 4))
    np.testing.assert_array_equal(one.log.feedback[:, 0], four.log.feedback[:, 0])
    assert (four.log.feedback[:, 0] != four.log.feedback[:, 1]).any()


@pytest.mark.parametrize("protocol", ["rating", "feature"])
def test_files(tmp_path, protocol):
    rated = rated_of()
    sim = simulate(rated, protocol=protocol, signals=2, target=0.3, test_fraction=0.25, seed=3)
    log_path, truth_path = write_simulation(sim, tmp_path / "new" / "log.jsonl")
    assert [log_path.name, truth_path.name] == ["log.jsonl", "log.truth.jsonl"]
    assert validate(log_path)["problems"] == []

    log, truth, test = read_log(log_path), read_rated(truth_path), read_rated(tmp_path / "new/log.test.jsonl")
    assert log.ids == truth.ids == sim.log.ids and log.messages == truth.messages == sim.log.messages
    np.testing.assert_array_equal(log.feedback, sim.log.feedback)
    np.testing.assert_array_equal(truth.preference, sim.truth.preference)
    assert log.propensity is None and (log.preference == -1).all()
    if protocol == "feature":
        np.testing.assert_array_equal(log.features, sim.log.features)
        assert log.feature_names == FEATURES
    written = [json.loads(line)["propensity"] for line in truth_path.read_text().splitlines()]
    np.testing.assert_array_equal([[p["click"], p["copy"]] for p in written], sim.propensity)
    assert "rating" not in log_path.read_text() and "propensity" not in log_path.read_text()

    assert sorted(truth.ids + test.ids) == sorted(rated.ids) and len(test) == 100
    known = dict(zip(rated.ids, rated.preference, strict=True))
    assert [known[name] for name in truth.ids + test.ids] == [*truth.preference, *test.preference]
    assert not set(truth.pair.tolist()) & set(test.pair.tolist()) - {-1}
    assert not {m[0]["content"] for m in truth.messages} & {m[0]["content"] for m in test.messages}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sim = simulate(rated_of(), protocol="feature", signals=2, seed=seed, test_fraction=0.2)
        contents.append([path.read_bytes() for path in write_simulation(sim, tmp_path / f"{name}.jsonl")])
    assert contents[0] == contents[1] != contents[2]


def test_conversations_come_back_as_they_were(tmp_path):
    rated = rated_of(4)
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "ünï\u2028\n\ncode\x00"},
    ]
    rated = dataclasses.replace(rated, messages=[turns, turns[1:], *rated.messages[2:]])
    sim = simulate(rated, protocol="rating", signals=1, target=0.9)
    assert read_log(write_simulation(sim, tmp_path / "log.jsonl")[0]).messages == rated.messages


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"protocol": "ratings"}, "protocol: got 'ratings'"),
        ({"signals": 0}, "signals: got 0; expected 1 to 4"),
        ({"signals": 5}, "signals: got 5"),
        ({"alpha": 0.0}, "alpha: got 0.0"),
        ({"alpha": float("nan")}, "alpha: got nan"),
        ({"target": 1.0}, "target: got 1.0"),
        ({"seed": -1}, "seed: got -1"),
        ({"test_fraction": 1.0}, "test_fraction: got 1.0"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        simulate(rated_of(), **({"protocol": "rating", "signals": 1} | arguments))


@pytest.mark.parametrize("protocol", ["rating", "feature"])
def test_bad_ratings(protocol):
    rated = rated_of()
    same = dataclasses.replace(rated, rating=np.full(400, 3.0))
    with pytest.raises(ValueError, match="all 400 are 3; expected ratings that differ"):
        simulate(same, protocol=protocol, signals=1)
    rating = np.full(400, 5.0)
    rating[0] = 1
    for level, words in enumerate(("not preferred", "preferred")):
        top = dataclasses.replace(rated, rating=rating, preference=np.full(400, level, np.int8))
        with pytest.raises(ValueError, match=f"all 400 rows are {words}"):
            simulate(top, protocol=protocol, signals=1)
    with pytest.raises(ValueError, match="no rated rows"):
        simulate(rated.subset(np.zeros(400, bool)), protocol=protocol, signals=1)


def test_a_log_without_any_action():
    with pytest.raises(ValueError, match="no action was drawn in 4 rows"):
        simulate(rated_of(4), protocol="rating", signals=1, target=1e-6)


def test_the_name_of_the_log(tmp_path):
    sim = simulate(rated_of(), protocol="rating", signals=1)
    with pytest.raises(ValueError, match=r"'log\.json'; expected a name that ends in \.jsonl"):
        write_simulation(sim, tmp_path / "log.json")


def test_earlier_files_are_kept_or_replaced_whole(tmp_path):
    with_test = simulate(rated_of(), protocol="rating", signals=1, test_fraction=0.2)
    without = simulate(rated_of(), protocol="rating", signals=1)
    out, test = tmp_path / "log.jsonl", tmp_path / "log.test.jsonl"
    write_simulation(with_test, out)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3
    with pytest.raises(FileExistsError, match=r"log\.jsonl exists already; .*--overwrite"):
        write_simulation(without, out)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    write_simulation(without, out, overwrite=True)
    assert len(read_log(out)) == 400 and not test.exists(), "the test rows of the earlier log are in this one"
    for path in (out, tmp_path / "log.truth.jsonl"):
        path.unlink()
    test.touch()
    with pytest.raises(FileExistsError, match=r"log\.test\.jsonl exists"):
        write_simulation(without, out)


def simulate_command(source, out, *options):
    return CliRunner().invoke(app, ["simulate", str(source), "--out", str(out), *options])


def test_the_command_spares_its_input_and_earlier_files(tmp_path):
    write_simulation(simulate(rated_of(), protocol="rating", signals=1), tmp_path / "a.jsonl")
    truth, out = tmp_path / "a.truth.jsonl", tmp_path / "b.jsonl"
    before = truth.read_bytes()
    (tmp_path / "alias.jsonl").symlink_to(truth)
    for name in ("a.truth.jsonl", "a.jsonl", "alias.jsonl"):  # the log, its truth, or the log by another name
        result = simulate_command(truth, tmp_path / name, "--overwrite")
        assert result.exit_code == 2 and "is the input" in result.stderr, result.output
    assert truth.read_bytes() == before

    assert simulate_command(truth, out).exit_code == 0
    again = simulate_command(truth, out)
    assert again.exit_code == 2 and "b.jsonl exists" in again.stderr and "--overwrite" in again.stderr
    assert simulate_command(truth, out, "--overwrite", "--test-fraction", "0.2").exit_code == 0
    assert len(read_log(out)) == 320
