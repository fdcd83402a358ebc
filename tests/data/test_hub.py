import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from irm_fast.data.hub import SOURCES, fetch_rated, helpsteer, saferlhf, ultrafeedback


def said(prompt, response):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def hs(i, **fields):
    row = {"prompt": f"q{i}", "response": f"a{i}", "helpfulness": i % 5}
    return row | {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2} | fields


def ufb(i, **fields):
    row = {"prompt": f"q{i}", "prompt_id": f"id{i}", "chosen": said(f"q{i}", f"good{i}")}
    row |= {"rejected": said(f"q{i}", f"bad{i}"), "messages": said(f"q{i}", f"good{i}")}
    return row | {"score_chosen": 8.5, "score_rejected": 4.0} | fields


def safe(i, **fields):
    row = {"prompt": f"q{i}", "prompt_source": "x", "response_0": f"a{i}", "response_1": f"b{i}"}
    for side, level in ((0, 0), (1, 2)):
        row |= {f"response_{side}_source": "Alpaca-7B", f"is_response_{side}_safe": level == 0}
        row |= {f"response_{side}_harm_category": {"Drugs": level > 0}, f"response_{side}_severity_level": level}
    return row | {"better_response_id": 1, "safer_response_id": 0} | fields


MADE = {"hs": hs, "ufb": ufb, "saferlhf": safe}


@pytest.fixture
def hub(monkeypatch):
    """A function that puts rows in the place of the hub; returns the list of (repository, split) asked for."""

    def put(rows):
        asked = []

        def load_dataset(repository, *, split):
            asked.append((repository, split))
            return Dataset.from_list(rows)

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        return asked

    return put


def test_helpsteer():
    assert helpsteer("hs-train-3", 3, hs(3)) == [("hs-train-3", said("q3", "a3"), 3.0, -1)]


def test_ultrafeedback():
    assert ultrafeedback("u-7", 7, ufb(7)) == [
        ("u-7-chosen", said("q7", "good7"), 8.5, 7),
        ("u-7-rejected", said("q7", "bad7"), 4.0, 7),
    ]


def test_ultrafeedback_of_several_turns():
    talk = said("q", "a") + said("why?", "so")
    assert ultrafeedback("u", 0, ufb(0, chosen=talk))[0].messages == talk


def test_saferlhf():
    assert saferlhf("s-7", 7, safe(7)) == [("s-7-0", said("q7", "a7"), 3.0, 7), ("s-7-1", said("q7", "b7"), 1.0, 7)]


NO_TEXT = {
    "hs prompt empty": (helpsteer, hs(0, prompt=" \n"), 0),
    "hs prompt null": (helpsteer, hs(0, prompt=None), 0),
    "hs response empty": (helpsteer, hs(0, response=""), 0),
    "ufb response empty": (ultrafeedback, ufb(0, rejected=said("q", " ")), 1),
    "ufb prompt empty": (ultrafeedback, ufb(0, rejected=said("", "a")), 1),
    "ufb no prompt": (ultrafeedback, ufb(0, rejected=said("q", "a")[1:]), 1),
    "ufb no response": (ultrafeedback, ufb(0, rejected=said("q", "a")[:1]), 1),
    "ufb no turns": (ultrafeedback, ufb(0, rejected=[]), 1),
    "ufb null": (ultrafeedback, ufb(0, rejected=None), 1),
    "ufb content null": (ultrafeedback, ufb(0, rejected=said("q", None)), 1),
    "saferlhf response empty": (saferlhf, safe(0, response_1=""), 1),
}
NO_RATING = {
    "hs null": (helpsteer, hs(0, helpfulness=None), 0),
    "hs NaN": (helpsteer, hs(0, helpfulness=math.nan), 0),
    "ufb infinite": (ultrafeedback, ufb(0, score_rejected=math.inf), 1),
    "ufb null": (ultrafeedback, ufb(0, score_rejected=None), 1),
    "saferlhf null": (saferlhf, safe(0, response_1_severity_level=None), 1),
}


@pytest.mark.parametrize("case", NO_TEXT)
def test_a_missing_text_leaves_no_messages(case):
    convert, row, which = NO_TEXT[case]
    responses = convert("x", 0, row)
    assert [bool(response.messages) for response in responses] == [i != which for i in range(len(responses))]
    assert all(math.isfinite(response.rating) for response in responses)


@pytest.mark.parametrize("case", NO_RATING)
def test_a_missing_rating_is_nan(case):
    convert, row, which = NO_RATING[case]
    responses = convert("x", 0, row)
    assert [math.isnan(response.rating) for response in responses] == [i == which for i in range(len(responses))]
    assert all(response.messages for response in responses)


def test_fetch_helpsteer(hub):
    asked = hub([hs(i) for i in range(5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rated = fetch_rated("hs")
    assert asked == [("nvidia/HelpSteer", "train")]
    assert rated.ids == [f"hs-train-{i}" for i in range(5)]
    assert rated.messages[2] == said("q2", "a2")
    assert rated.rating.dtype == np.float64 and rated.rating.tolist() == [0, 1, 2, 3, 4]
    assert rated.preference.dtype == np.int8 and rated.preference.tolist() == [0, 0, 0, 1, 1]
    assert rated.pair.dtype == np.int64 and rated.pair.tolist() == [-1] * 5


def test_fetch_ultrafeedback(hub):
    asked = hub([ufb(0), ufb(1, score_chosen=6, score_rejected=7.5)])
    rated = fetch_rated("ufb")
    assert asked == [("HuggingFaceH4/ultrafeedback_binarized", "train_prefs")]
    assert rated.ids == [f"ufb-train_prefs-{i}-{side}" for i in (0, 1) for side in ("chosen", "rejected")]
    assert rated.rating.tolist() == [8.5, 4, 6, 7.5] and rated.preference.tolist() == [1, 0, 0, 1]
    assert rated.pair.tolist() == [0, 0, 1, 1]
    assert rated.messages[1] == said("q0", "bad0")


def test_fetch_saferlhf(hub):
    asked = hub([safe(0), safe(1), safe(2, response_0_severity_level=3, response_1_severity_level=3)])
    rated = fetch_rated("saferlhf")
    assert asked == [("PKU-Alignment/PKU-SafeRLHF", "train")]
    assert rated.ids == [f"saferlhf-train-{i}-{side}" for i in range(3) for side in (0, 1)]
    assert rated.rating.tolist() == [3, 1, 3, 1, 0, 0] and rated.preference.tolist() == [1, 0, 1, 0, 0, 0]
    assert rated.pair.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_median_is_that_of_the_levels_not_of_the_rows(hub):
    hub([hs(4) for _ in range(9)] + [hs(3)])
    assert fetch_rated("hs").preference.tolist() == [1] * 10


def test_ids_and_pairs_are_unique_over_splits(hub, monkeypatch):
    parts = replace(SOURCES["saferlhf"], splits=("train", "more"))
    monkeypatch.setitem(SOURCES, "saferlhf", parts)
    hub([safe(0), safe(1)])
    rated = fetch_rated("saferlhf")
    assert len(set(rated.ids)) == 8 and rated.ids[4] == "saferlhf-more-0-0"
    assert rated.pair.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_unusable_responses_are_counted(hub):
    hub([hs(0), hs(1, prompt=""), hs(2, helpfulness=None), hs(3, response=" "), hs(4)])
    with pytest.warns(UserWarning, match="^nvidia/HelpSteer: 3 responses left out") as warned:
        rated = fetch_rated("hs")
    assert len(warned) == 1 and warned[0].filename == __file__
    assert rated.ids == ["hs-train-0", "hs-train-4"]


def test_half_a_pair_is_no_pair(hub):
    hub([safe(0), safe(1, response_0=""), safe(2)])
    with pytest.warns(UserWarning, match="PKU-SafeRLHF: 1 responses left out"):
        rated = fetch_rated("saferlhf")
    assert rated.ids[2] == "saferlhf-train-1-1" and rated.pair.tolist() == [0, 0, -1, 2, 2]


def test_no_usable_response(hub):
    hub([hs(0, response=""), hs(1, response="")])
    with pytest.raises(ValueError, match=r"nvidia/HelpSteer: 2 responses left out .* none remains"):
        fetch_rated("hs")


def test_limit(hub):
    hub([hs(0, prompt=""), *[hs(i) for i in range(1, 9)], hs(9, prompt="")])
    with pytest.warns(UserWarning, match="1 responses left out"):
        rated = fetch_rated("hs", limit=3)
    assert rated.ids == ["hs-train-1", "hs-train-2", "hs-train-3"] and rated.preference.tolist() == [0, 0, 1]
    with pytest.warns(UserWarning, match="2 responses left out"):
        assert len(fetch_rated("hs", limit=100)) == 8
    with pytest.raises(ValueError, match="limit: got 0; expected a whole number from 1"):
        fetch_rated("hs", limit=0)


def test_a_limit_within_a_pair(hub):
    hub([ufb(0), ufb(1)])
    rated = fetch_rated("ufb", limit=3)
    assert rated.pair.tolist() == [0, 0, -1] and len(set(rated.ids)) == 3


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in SOURCES for column in SOURCES[name].columns])
def test_a_missing_column_is_named(hub, name, column):
    hub([{key: value for key, value in MADE[name](0).items() if key != column}])
    with pytest.raises(ValueError, match=f"^{SOURCES[name].repository}: column '{column}' is missing"):
        fetch_rated(name)


def test_unknown_name():
    with pytest.raises(ValueError, match="got 'helpsteer'; expected one of hs, ufb, saferlhf"):
        fetch_rated("helpsteer")


@pytest.mark.parametrize("name", SOURCES)
def test_offline(name):
    with pytest.raises(RuntimeError) as raised:  # conftest sets HF_HUB_OFFLINE=1
        fetch_rated(name)
    text = str(raised.value)
    start = f"data: {name} is fetched from the hub ({SOURCES[name].repository}), which cannot be reached: "
    assert text.startswith(start) and text.endswith("; give a file instead")
    assert len(text) > len(start) + 30 and "\n" not in text


def failures():
    from huggingface_hub.errors import HTTPError

    return [ConnectionError("no\nroute"), FileNotFoundError("gone"), TimeoutError(), HTTPError("502")]


@pytest.mark.parametrize("error", failures(), ids=lambda error: type(error).__name__)
def test_other_failures_of_the_hub(monkeypatch, error):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(RuntimeError) as raised:
        fetch_rated("hs")
    cause = {"ConnectionError": "no route", "FileNotFoundError": "gone", "TimeoutError": "TimeoutError"}
    assert f"cannot be reached: {cause.get(type(error).__name__, '502')}; give a file instead" in str(raised.value)


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"data: hs, of the hub: .*pip install 'irm-fast\[hub\]'"):
        fetch_rated("hs")
