"""`irm_fast.json` may come from strangers: what is not as `irm-fast train` wrote it is refused by file and field."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from irm_fast.data.signals import RewardSpec
from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.embeddings.store import Source
from irm_fast.evaluation.scoring import declared_for
from irm_fast.models.record import read_record, spec_of_record, write_record
from irm_fast.models.reward_model import ImplicitRewardModel

SPEC = RewardSpec("hidden", signals=("copy", "share"), polarity=(1, -1), misclick_rate=(0.0, 0.1), max_length=64)
SOURCE = asdict(Source("model", "decoder", "last", 64, "float32", "float32", "2:00"))
EDITS = [
    *[("max_length", value) for value in (-5, 0, "x", None, 1.5, True, 10**12, [8])],
    *[("polarity", value) for value in ([5, 5], [1], "x", [1, -1, 1], [1.0, -1.0], [True, True], None)],
    *[("misclick_rate", value) for value in ([2, 2], None, [-0.1, 0], [math.nan, 0], [1, 0], ["0", "0"], [0])],
    *[("signals", value) for value in (["copy", "copy"], [1, 2], 5, [], ["copy"], ["", "a"], ["\x1b[2J", "a"])],
    *[("signals", value) for value in (["a\nproblems: 0", "b"], ["\u202eypoc", "b"], {"copy": 1}, "ab")],
    *[("reward_bias", value) for value in ("x", math.inf, math.nan, None, 10**400, [0.0])],
    *[("design", value) for value in ("perhaps", 3, None, ["hidden"], "features")],
    *[("feature_names", value) for value in (None, ["a", "a"], [1])],
    *[("format", value) for value in (True, "1", None, -1, 2, [1])],
    *[("estimator", "third"), ("diagnosis", 3), ("training", []), ("training", {"max_errors": "x"})],
    *[("training", {"map": 3}), ("training", {"fold_system": "no"}), ("position", "x"), ("position", math.inf)],
    *[("embeddings", None), ("embeddings", {"model": "/etc"}), ("embeddings", SOURCE | {"pooling": "all"})],
    *[("keeps_bos", "yes"), ("data", 3), ("data", [{"rows": 1}]), ("versions", {"torch": 2}), ("learned", 1)],
    *[("gain_over_constant", "x"), ("embeddings", SOURCE | {"keeps_bos": "no"})],
    *[("embeddings", SOURCE | {"max_length": 0}), ("embeddings", SOURCE | {"normalize": "True"})],
]


def edited(folder, **change):
    path = folder / "irm_fast.json"
    (folder / MANIFEST).unlink(missing_ok=True)  # as who edits it on purpose does, or a stranger
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return path


@pytest.mark.parametrize(("field", "value"), EDITS)
def test_an_edited_field_is_refused_by_name(tmp_path, field, value):
    write_record(tmp_path, [], SPEC, 0.5, {"training": {"absent": "error"}})
    assert spec_of_record(read_record(tmp_path)) == SPEC
    path = edited(tmp_path, **{field: value})
    with pytest.raises(ValueError) as refused:
        read_record(tmp_path)
    message = str(refused.value)
    field = "feature_names" if value == "features" else field
    blamed = "polarity" if field == "signals" and value in ([], ["copy"]) else field  # of another length than these
    assert message.startswith(f"{path}: {blamed}") and "expected" in message
    assert "\x1b" not in message and "\n" not in message and "\u202e" not in message


@pytest.mark.parametrize("field", ["signals", "polarity", "misclick_rate", "max_length", "reward_bias", "design"])
def test_a_missing_field_is_named(tmp_path, field):
    write_record(tmp_path, [], SPEC, 0.5, {})
    path = tmp_path / "irm_fast.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != field}))
    with pytest.raises(ValueError, match=rf"irm_fast\.json: {field}: damaged: no {field}"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10**5, b'{"format": 1e999}', b"null", b'"text"'])
def test_what_is_no_record_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "irm_fast.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"irm_fast\.json: (damaged|format)") as refused:
        read_record(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_record_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "irm_fast.json").open("wb") as file:
        file.truncate(2**40)  # of nothing but holes
    with pytest.raises(ValueError, match=r"larger than 67,108,864 bytes"):
        read_record(tmp_path)


def test_newer_versions_are_refused_by_number_and_newer_fields_are_not(tmp_path):
    write_record(tmp_path, [], SPEC, 0.5, {"colour": "green"})
    assert spec_of_record(read_record(tmp_path)) == SPEC
    edited(tmp_path, format=2)
    with pytest.raises(ValueError, match=r"format: got 2; expected 1; upgrade irm-fast"):
        read_record(tmp_path)


def test_records_of_earlier_versions_are_read(tmp_path):
    earlier = {
        "format": 1,
        "version": "0.0.1",
        "design": "constant",
        "signals": [],
        "polarity": [],
        "misclick_rate": [],
    }
    earlier |= {"feature_names": [], "max_length": 1024, "reward_bias": 0}
    (tmp_path / "irm_fast.json").write_text(json.dumps(earlier))
    assert spec_of_record(read_record(tmp_path)) == RewardSpec("constant", keeps_bos=False)
    assert declared_for(tmp_path).absent == "error"


def test_a_whole_model_with_an_edited_record_is_not_loaded(tiny_model, tmp_path):
    torch.manual_seed(0)
    ImplicitRewardModel.from_backbone(tiny_model, SPEC).save(tmp_path)
    ImplicitRewardModel.load(tmp_path)
    edited(tmp_path, max_length=-5)
    with pytest.raises(ValueError, match=r"irm_fast\.json: max_length: got -5; expected a whole number, 1 or more"):
        ImplicitRewardModel.load(tmp_path)
