import json

import numpy as np
import pytest

from irm_fast.data.rated import check_both
from irm_fast.data.read import DataError, Rated, read_log_or_rated, read_rated

Q, A, Q2, A2 = (
    {"role": role, "content": text}
    for role, text in [("user", "Hi?"), ("assistant", "Hello."), ("user", "Why?"), ("assistant", "So.")]
)
OTHER = {"role": "assistant", "content": "Go away."}


@pytest.fixture
def rated_of(tmp_path):
    def read(*rows):
        path = tmp_path / "rated.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_rated(path)

    return read


def rating(i, **fields):
    base = {"id": f"r{i}", "prompt": f"q{i}", "completion": f"a{i}", "rating": i}
    return {key: value for key, value in (base | fields).items() if value is not ...}


def test_ratings(rated_of):
    rated = rated_of(*[rating(i) for i in (1, 5, 3, 4)])
    assert rated.rating.dtype == np.float64 and rated.rating.tolist() == [1, 5, 3, 4]
    assert rated.preference.dtype == np.int8 and rated.preference.tolist() == [0, 1, 0, 1]
    assert rated.pair.dtype == np.int64 and rated.pair.tolist() == [-1] * 4
    assert rated.ids == ["r1", "r5", "r3", "r4"]
    assert rated.messages[0] == [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]


def test_users_and_models(rated_of, tmp_path):
    rated = rated_of(rating(1, user_id="u", model="m"), rating(2, user=7), rating(3, model_name="n"))
    assert rated.user_ids == ["u", "7", None] and rated.models == ["m", None, "n"]
    part = rated.subset(np.array([2, 0]))
    assert part.user_ids == [None, "u"] and part.models == ["n", "m"]
    assert rated_of(rating(1), rating(2)).user_ids is None and rated_of(rating(1), rating(2)).models is None
    pairs = rated_of({"chosen": [Q, A], "rejected": [Q, OTHER], "user_id": "u"})
    assert pairs.user_ids == ["u", "u"] and pairs.models is None
    assert rated_of(rating(1, user_id=""), rating(2, user_id="u")).user_ids == [None, "u"]  # not known
    with pytest.raises(DataError, match=r"jsonl:1: user_id: got \[\]"):
        rated_of(rating(1, user_id=[]))

    path = tmp_path / "labels.jsonl"  # labels of users are ratings, not a log without signals
    path.write_text(json.dumps(rating(1, rating=..., preference=1, user_id="u")) + "\n")
    assert isinstance(read_log_or_rated(path), Rated)


def test_the_median_itself_is_not_preferred(rated_of):
    assert rated_of(rating(1), rating(5), rating(3)).preference.tolist() == [0, 1, 0]


def test_two_levels_are_labels(rated_of):
    rated = rated_of(*[rating(i, rating=1 if i == 2 else 5) for i in range(5)])
    assert rated.preference.tolist() == [1, 1, 0, 1, 1]
    check_both(rated)


def test_check_both(rated_of):
    top_heavy = rated_of(*[rating(i, rating=min(i, 2)) for i in range(6)])
    with pytest.raises(ValueError, match=r"all 6 rows are not preferred.*above this file's median.*`preference`"):
        check_both(top_heavy)
    with pytest.raises(ValueError, match="all 2 rows are preferred"):
        check_both(rated_of(rating(1, preference=1), rating(2)))


@pytest.mark.parametrize("alias", ["score", "label", "stars"])
def test_aliases(rated_of, alias):
    assert rated_of(*[rating(i, rating=..., **{alias: i}) for i in (1, 2)]).rating.tolist() == [1, 2]


def test_a_given_preference_counts(rated_of):
    rated = rated_of(rating(1, preference=1), rating(2), rating(3), rating(4, preference=0))
    assert rated.preference.tolist() == [1, 0, 1, 0]
    rated = rated_of(*[rating(i, rating=..., preference=i % 2 == 1) for i in range(3)])
    assert rated.rating.tolist() == rated.preference.tolist() == [0, 1, 0]


def test_explicit_pairs(rated_of):
    rated = rated_of(rating(1, pair=0), rating(2), rating(3, pair=0, propensity={"click": 0.5}))
    assert rated.pair.tolist() == [0, -1, 0]
    part = rated.subset(np.array([0, 2]))
    assert part.ids == ["r1", "r3"] and part.pair.tolist() == [0, 0] and part.preference.tolist() == [0, 1]


TEXT = "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
PAIRS = {
    "texts": {"chosen": TEXT + " So.", "rejected": TEXT + " Go away."},
    "text and prompt": {"prompt": TEXT, "chosen": " So.", "rejected": " Go away."},
    "messages": {"chosen": [Q, A, Q2, A2], "rejected": [Q, A, Q2, OTHER]},
    "messages and prompt": {"prompt": [Q, A, Q2], "chosen": [A2], "rejected": [OTHER]},
    "messages that repeat the prompt": {
        "prompt": [Q, A, Q2],
        "chosen": [Q, A, Q2, A2],
        "rejected": [Q, A, Q2, OTHER],
    },
    "texts and prompt of messages": {"prompt": [Q, A, Q2], "chosen": "So.", "rejected": "Go away."},
    "texts that repeat the prompt": {"prompt": TEXT, "chosen": TEXT + " So.", "rejected": TEXT + " Go away."},
}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_layouts(rated_of, name):
    rated = rated_of(PAIRS[name], {"id": "x"} | PAIRS[name])
    assert rated.messages == [[Q, A, Q2, A2], [Q, A, Q2, OTHER]] * 2
    assert rated.rating.tolist() == rated.preference.tolist() == [1, 0, 1, 0]
    assert rated.pair[0] == rated.pair[1] != rated.pair[2] == rated.pair[3]
    assert rated.ids == ["row-1-chosen", "row-1-rejected", "x-chosen", "x-rejected"]


def test_neighbouring_turns_of_one_speaker_are_joined(rated_of):
    start = "\n\nHuman: Hi?\n\nHuman: \n\nHuman: Why?\n\nAssistant: Hello."
    rated = rated_of({"chosen": start + "\n\nAssistant: So.", "rejected": start})
    assert [turn["content"] for turn in rated.messages[0]] == ["Hi?\n\nWhy?", "Hello.\n\nSo."]


def test_names_within_a_text_do_not_part_it(rated_of):
    text = "\n\nHuman: Hi?\n\nAssistant: Human: is a word.\nAssistant: too."
    rated = rated_of({"chosen": text, "rejected": TEXT + " So."})
    assert rated.messages[0][1]["content"] == "Human: is a word.\nAssistant: too."


def test_pairs_with_an_empty_response_are_left_out(rated_of):
    with pytest.warns(UserWarning, match="1 pairs left out because a response is empty: lines 2"):
        rated = rated_of(PAIRS["texts"], {"chosen": TEXT, "rejected": TEXT + " x"}, PAIRS["messages"])
    assert len(rated) == 4


BAD = {
    "nothing rated": ([rating(1, rating=...)], ":1: rating: ", "missing"),
    "rating NaN": ([rating(1, rating="nan")], ":1: rating: ", "'nan'"),
    "rating a text": ([rating(1, rating="good")], ":1: rating: ", "'good'"),
    "ratings in some": ([rating(1), rating(2, rating=..., preference=1)], ":2: rating: ", "all or none"),
    "preference 2": ([rating(1, preference=2)], ":1: preference: ", "got 2"),
    "feedback alone": ([rating(1, rating=..., feedback={"click": 1})], ":1: rating: ", "missing"),
    "completion empty": ([rating(1), rating(2, completion="")], ":2: completion: ", "empty"),
    "id twice": ([rating(1), rating(1)], ":2: id: ", "line 1"),
    "pair of one": ([rating(1, pair=4), rating(2)], ":1: pair: ", "pair 4 has 1 row"),
    "pair 1.5": ([rating(1, pair=1.5)], ":1: pair: ", "whole number"),
    "propensity 0": ([rating(1, propensity={"click": 0})], ":1: propensity.click: ", "above 0"),
    "half a pair": ([{"chosen": TEXT + " x"}], ":1: rejected: ", "missing"),
    "plain text": ([{"chosen": "x", "rejected": "y"}], ":1: chosen: ", "Human:"),
    "other prompt": (
        [{"prompt": "x", "chosen": [Q, A], "rejected": [OTHER]}],
        ":1: chosen: ",
        "another prompt",
    ),
    "ends with the user": ([{"chosen": [Q, A], "rejected": [Q]}], ":1: rejected: ", "assistant's turn"),
    "two layouts": ([PAIRS["texts"], rating(2)], ": chosen: ", "all rows or none"),
    "no rows": ([], ": file: ", "no usable row"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(rated_of, tmp_path, name):
    rows, where, fragment = BAD[name]
    with pytest.raises(DataError) as raised:
        rated_of(*rows)
    matching = [p for p in raised.value.problems if p.startswith(f"{tmp_path / 'rated.jsonl'}{where}")]
    assert len(matching) == 1, raised.value.problems
    assert fragment in matching[0]


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "rated.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([PAIRS["messages and prompt"], PAIRS["messages"]]), path)
    assert read_rated(path).messages == [[Q, A, Q2, A2], [Q, A, Q2, OTHER]] * 2
