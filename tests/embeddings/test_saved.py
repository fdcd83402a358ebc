"""`embedding_model.json` may come from strangers: what is not as it was written is refused by file and field."""

import json
import math

import numpy as np
import pytest

from irm_fast.data.writing.manifest import MANIFEST
from irm_fast.embeddings.estimator import EmbeddingRewardModel

EDITS = [
    *[("settings.n_folds", value) for value in (-1, "5", 2.5, None)],
    *[("settings.learning_rate", value) for value in (math.nan, "x", -1, math.inf)],
    *[("settings.hidden_layers", value) for value in ("deep", [-1], [10**9], 3)],
    *[("settings.device", value) for value in (3, None)],
    *[("settings.verbose", "yes"), ("settings.propensity_sd", ["x"]), ("settings", []), ("settings", None)],
    *[("fitted.n_features_in_", value) for value in (0, -3, 10**12, "5", None)],
    *[("fitted.propensity_designs_", value) for value in (["free", "hidden"], "hidden", ["hidden"], [1, 2])],
    *[("fitted.is_linear_", "yes"), ("fitted.held_out_nll_", math.inf), ("fitted.after", ["x"])],
    *[("signals.names", value) for value in (["a", "a"], ["a"], [1, 2], "ab", ["\x1b[2J", "b"])],
    *[("signals.polarity", value) for value in ([5, 5], [1], None)],
    *[("signals.misclick_rate", value) for value in ([2, 0], [math.nan, 0], [None, None])],
    *[("networks.reward", value) for value in ([[5]], [[10**6, 10**6]], [["x"]], 3)],
    *[("context", 3), ("context", {"parts": [], "who": "all"}), ("diagnosis", 3), ("diagnosis.tests", [{"name": 1}])],
    *[("diagnosis.sensitivity", None), ("diagnosis.assumed", "x"), ("format", 2), ("format", True)],
]


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 3))
    acts = (X[:, :1] > 0) & (rng.random((200, 2)) < 0.5)
    return EmbeddingRewardModel(hidden_layers=(), random_state=0).fit(X, acts.astype(int))


def edit(folder, field, value):
    path = folder / "embedding_model.json"
    (folder / MANIFEST).unlink(missing_ok=True)  # as who edits it on purpose does, or a stranger
    record = json.loads(path.read_text())
    *outer, last = field.split(".")
    inner = record
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(("field", "value"), EDITS)
def test_an_edited_field_is_refused_by_name(fitted, tmp_path, field, value):
    fitted.save(tmp_path)
    path = edit(tmp_path, field, value)
    with pytest.raises(ValueError) as refused:
        EmbeddingRewardModel.load(tmp_path)
    message = str(refused.value)
    assert message.startswith((f"{path}: ", f"{tmp_path}: damaged: networks.")) and "expected" in message
    assert "\x1b" not in message and "\n" not in message
    blamed = "signals.polarity" if (field, value) == ("signals.names", ["a"]) else field  # of another length than it
    assert blamed in message


def test_what_newer_versions_add_is_left_alone(fitted, tmp_path):
    fitted.save(tmp_path)
    tests = json.loads((tmp_path / "embedding_model.json").read_text())["diagnosis"]["tests"]
    edit(tmp_path, "diagnosis.tests", [{**test, "weather": "fine"} for test in tests])
    edit(tmp_path, "colour", "green")
    again = EmbeddingRewardModel.load(tmp_path)
    assert again.diagnosis_.to_dict() == fitted.diagnosis_.to_dict()
