"""The model, and the checkpoint that others load."""

import json
import os

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from irm_fast.data.signals import RewardSpec
from irm_fast.evaluation.scoring import load, score
from irm_fast.models.heads import PROPENSITY_DESIGNS
from irm_fast.models.record import save_tensors
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.models.tokens import encode

SIGNALS = {"signals": ("copy", "share"), "polarity": (1, -1), "misclick_rate": (0.0, 0.1)}


def make_model(tiny_model, design="hidden", **spec) -> ImplicitRewardModel:
    torch.manual_seed(0)
    names = ("length",) if design == "features" else ()
    model = ImplicitRewardModel.from_backbone(
        tiny_model, RewardSpec(design, feature_names=names, **{**SIGNALS, **spec})
    )
    with torch.no_grad():
        for parameter in (model.reward_bias, *model.propensity_design.parameters()):
            parameter.normal_()
    return model.eval()


def batch_of(model, conversations, side="right") -> dict[str, torch.Tensor]:
    ids, _ = encode(model.tokenizer, conversations, model.spec.max_length)
    return model.tokenizer.pad({"input_ids": ids}, padding_side=side, return_tensors="pt")


@pytest.mark.parametrize("side", ["left", "right"])
def test_checkpoint_scores_the_same_under_transformers(tiny_model, make_log, tmp_path, side):
    conversations = make_log(9).messages
    make_model(tiny_model).save(tmp_path)
    rewards = score(load(tmp_path), conversations, batch_size=4)
    assert np.std(rewards) > 1e-3  # the comparison below must be able to fail

    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.padding_side == "right"
    tokenizer.padding_side = side
    batch = tokenizer.apply_chat_template(
        conversations, tokenize=True, padding=True, return_dict=True, return_tensors="pt"
    )
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 3
    with torch.no_grad():
        logits = classifier(**batch).logits
    assert logits.shape == (9, 1)
    np.testing.assert_allclose(logits[:, 0].numpy(), rewards, atol=1e-5)


def test_saved_tokenizer_gives_the_training_ids(tiny_model, make_log, tmp_path):
    model = make_model(tiny_model, max_length=60)
    model.save(tmp_path)
    conversations = make_log(9).messages
    ids, truncated = encode(model.tokenizer, conversations, 60)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert 0 < truncated < 9
    for messages, expected in zip(conversations, ids, strict=True):
        got = tokenizer.apply_chat_template(messages, tokenize=True, truncation=True)["input_ids"]
        assert got[1:] == expected[1:] and expected[0] == tokenizer.bos_token_id  # which others cut off


def test_checkpoint_is_an_ordinary_classifier(tiny_model, tmp_path):
    from safetensors import safe_open

    make_model(tiny_model).save(tmp_path, {"objective": "marginal"})
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        keys = set(weights.keys())
        assert weights.get_slice("score.weight").get_shape() == [1, 32]
    assert keys > {"score.weight"}
    assert all(key.startswith("model.") for key in keys - {"score.weight"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["problem_type"] == "regression"
    assert len(config["id2label"]) == 1
    assert config["pad_token_id"] not in (None, config["eos_token_id"])
    names = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))]
    record = json.loads((tmp_path / "irm_fast.json").read_text())
    assert (record["signals"], record["objective"]) == (["copy", "share"], "marginal")


@pytest.mark.parametrize("design", list(PROPENSITY_DESIGNS))
def test_round_trip_of_every_design(tiny_model, make_log, tmp_path, design):
    model = make_model(tiny_model, design)
    inputs = dict(batch_of(model, make_log(5).messages))
    inputs["propensity"] = torch.tensor([[1.0, 1e-6], [0.5, torch.nan]] * 2 + [[0.1, 0.2]])
    inputs["features"] = torch.randn(5, 1)
    model.save(tmp_path)
    loaded = ImplicitRewardModel.load(tmp_path)
    assert loaded.spec == model.spec
    with torch.no_grad():
        for ours, theirs in zip(model.logits(**inputs), loaded.logits(**inputs), strict=True):
            assert ours.dtype == torch.float32
            assert torch.isfinite(ours).all()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_known_propensities_are_the_logs(tiny_model, make_log):
    model = make_model(tiny_model, "known")
    given = torch.tensor([[1.0, 1e-6], [0.5, 0.25]])
    with torch.no_grad():
        _, logits = model.logits(**batch_of(model, make_log(2).messages), propensity=given)
    torch.testing.assert_close(torch.sigmoid(logits), given)


def test_features_are_standardised(tiny_model):
    model = make_model(tiny_model, "features")
    model.propensity_design.standardise(np.array([[1.0], [3.0]], np.float32))
    hidden = torch.zeros(1, 32)
    at_mean = model.propensity_design(hidden, None, torch.tensor([[2.0]]))
    one_up = model.propensity_design(hidden, None, torch.tensor([[3.0]]))
    torch.testing.assert_close(at_mean[0], model.propensity_design.bias)
    torch.testing.assert_close((one_up - at_mean)[0], model.propensity_design.weight[:, 0])


@pytest.mark.parametrize(("design", "lacking"), [("known", "propensity"), ("features", "features")])
def test_designs_say_what_they_need(tiny_model, make_log, design, lacking):
    model = make_model(tiny_model, design)
    with pytest.raises(ValueError, match=lacking):
        model.logits(**batch_of(model, make_log(2).messages))


def test_heads_stay_in_float32_under_autocast(tiny_model, make_log):
    model = make_model(tiny_model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reward, propensity = model.logits(**batch_of(model, make_log(3).messages))
    assert reward.dtype == propensity.dtype == torch.float32


@pytest.mark.parametrize("design", ["hidden", "features"])
def test_the_loss_is_computed_in_float32_under_autocast(tiny_model, design):
    model, generator = make_model(tiny_model, design), torch.Generator().manual_seed(0)
    hidden, features = torch.randn(5, 32, generator=generator), torch.randn(5, 1, generator=generator)
    feedback = torch.tensor([[1, 0], [0, -1], [0, 0], [1, 0], [0, 0]])
    arguments = {"propensity": None, "features": features, "stratification": "current"}
    losses = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model.heads.loss(hidden, feedback, **arguments, **model.spec.loss_options))
    assert losses[0] == losses[1]


def test_action_rates(tiny_model):
    model = make_model(tiny_model)
    reward, propensity = torch.tensor([1.0]), torch.tensor([[0.5, -0.5]])
    g, m = torch.sigmoid(reward), torch.sigmoid(propensity)[0]
    expected = torch.stack([g[0] * m[0], (1 - g[0]) * m[1] + g[0] * 0.1 * m[1]])
    torch.testing.assert_close(model.spec.action_rates(reward, propensity)[0], expected)


def test_start_at_the_observed_rates(tiny_model):
    model = make_model(tiny_model, "constant")
    model.start_at(np.array([0.2, 0.0]))
    torch.testing.assert_close(torch.sigmoid(model.propensity_design.bias), torch.tensor([0.4, 0.01]))


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"irm_fast\.json: not found"):
        load(tmp_path)
    (tmp_path / "irm_fast.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match=r"format: got 99"):
        load(tmp_path)


def test_damaged_folder(tiny_model, tmp_path):
    """Without a manifest, as of earlier versions."""
    make_model(tiny_model).save(tmp_path)
    (tmp_path / "irm_fast_files.json").unlink()

    def error_after(name: str, content: bytes) -> str:
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            load(tmp_path)
        path.write_bytes(whole)
        assert str(path if name != "model.safetensors" else tmp_path) in str(error.value)
        return str(error.value)

    record = json.loads((tmp_path / "irm_fast.json").read_text())
    assert "not readable as JSON" in error_after("irm_fast.json", (tmp_path / "irm_fast.json").read_bytes()[:40])
    less = {key: value for key, value in record.items() if key not in ("polarity", "reward_bias")}
    assert "no polarity, reward_bias" in error_after("irm_fast.json", json.dumps(less).encode())
    assert "'perhaps'" in error_after("irm_fast.json", json.dumps(record | {"design": "perhaps"}).encode())
    assert "got a list" in error_after("irm_fast.json", b"[]")
    other = json.dumps(record | {"design": "constant"}).encode()
    (tmp_path / "irm_fast.json").write_bytes(other)
    with pytest.raises(ValueError, match=r"propensity\.safetensors"):
        load(tmp_path)
    (tmp_path / "irm_fast.json").write_text(json.dumps(record))
    error_after("propensity.safetensors", b"")
    error_after("model.safetensors", b"12345678 truncated")
    load(tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_saved_files_have_the_mode_of_ordinary_ones(tiny_model, tmp_path, umask, mode):
    """safetensors would leave its files to their owner alone, whatever the umask says."""
    model, before = make_model(tiny_model), os.umask(umask)
    try:
        model.save(tmp_path / "saved")
        save_tensors({"any": torch.zeros(1)}, tmp_path / "saved" / "others.safetensors")
        assert os.umask(umask) == umask  # as it was
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert modes.keys() >= {"model.safetensors", "propensity.safetensors", "irm_fast.json", "config.json"}
    assert set(modes.values()) == {mode}, modes
