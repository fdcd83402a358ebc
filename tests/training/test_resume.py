"""A resumed run goes on as if it had not been interrupted, or is refused."""

import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from irm_fast.models import attention
from irm_fast.models.tokens import encode_texts, render
from irm_fast.training import run_folder
from irm_fast.training.config import TrainConfig
from irm_fast.training.fingerprint import describe
from irm_fast.training.run import train_log
from irm_fast.training.trainer import ImplicitTrainer
from tests.training.test_checkpoints import flip
from tests.training.training_cases import Interrupted, interrupt, largest_difference, metrics_of, train_until

DATED = "{{ strftime_now('%d.%m.%Y') }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("settings", "step", "checkpoint"),  # 6 steps an epoch
    [
        ({}, 10, 6),
        ({"eval_steps": 4}, 11, 8),
        ({"precision": "bfloat16"}, 10, 6),
        ({"eval_steps": 4, "gradient_accumulation": 2, "batch_size": 4}, 9, 8),
        ({"objective": "stratified", "stratification": "ema"}, 10, 6),
        ({"objective": "stratified", "stratification": "frozen", "eval_steps": 4}, 11, 8),
        ({"objective": "stratified", "stratification": "frozen", "eval_steps": 6}, 8, 6),
        ({"eval_steps": 50}, 3, None),
    ],
)
def test_resume_gives_the_uninterrupted_result(make_log, make_config, monkeypatch, settings, step, checkpoint):
    log = make_log(64)
    settings = {"epochs": 3, **settings}
    whole = train_log(log, make_config("whole", **settings))
    cut = make_config("cut", **settings)
    train_until(step, log, cut)
    with pytest.raises(ValueError, match=r"interrupted run; --resume .* --overwrite"):
        train_log(log, cut)
    with pytest.raises(ValueError, match=r"learning_rate: got 0\.5.*0\.001"):
        train_log(log, replace(cut, resume=True, learning_rate=0.5))
    with monkeypatch.context() as patch:
        if checkpoint is not None:
            interrupt(patch, checkpoint - 1)  # would raise if earlier steps were done again
        resumed = train_log(log, replace(cut, resume=True))
    assert largest_difference(whole, resumed) < 1e-6
    steps = [entry["step"] for entry in metrics_of(cut) if "eval_nll" in entry]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("fitted", [False, True])
def test_resume_with_settings_that_do_not_change_the_model(make_log, make_config, fitted):
    """A run goes on with less memory, say; how many rows the propensities read matters until they are fitted."""
    config, fingerprint = make_config(lora_rank=2), describe(make_log(), None)
    run_folder.begin_run(config, fingerprint)
    again = replace(config, resume=True)
    free = {"gradient_checkpointing": "full", "liger": True, "lora_keep_adapter": True, "report_to": "tensorboard"}
    run_folder.check_output(replace(again, **free), fingerprint)
    run_folder.check_output(replace(again, compile=True), fingerprint)
    fit = Path(config.output) / run_folder.CHECKPOINTS / "propensities"
    if fitted:
        fit.mkdir()
        (fit / "irm_fast.json").write_text("{}")
        run_folder.check_output(replace(again, propensity_rows=90), fingerprint)
    else:
        with pytest.raises(ValueError, match=r"propensity_rows: got 90; the interrupted run in .* has 100000"):
            run_folder.check_output(replace(again, propensity_rows=90), fingerprint)
    with pytest.raises(ValueError, match="precision: got 'bfloat16'"):
        run_folder.check_output(replace(again, precision="bfloat16"), fingerprint)


def test_resume_computes_again_what_it_kept_before(make_log, make_config):
    """The checkpoint of a run without recomputation is that of one with it."""
    whole = train_log(make_log(), make_config("whole"))
    cut = make_config("cut")
    train_until(7, make_log(), cut)
    resumed = train_log(make_log(), replace(cut, resume=True, gradient_checkpointing="full"))
    assert largest_difference(whole, resumed) < 1e-5


def test_resume_with_dropout(make_log, make_config, tmp_path, save_llama, save_tokenizer):
    model = tmp_path / "model"
    save_llama(model, save_tokenizer(model), dropout=0.3)
    whole = train_log(make_log(), replace(make_config("whole"), model=str(model)))
    cut = replace(make_config("cut"), model=str(model))
    train_until(7, make_log(), cut)
    assert largest_difference(whole, train_log(make_log(), replace(cut, resume=True))) < 1e-6


def test_resume_of_auto_keeps_the_first_design(make_log, make_config, monkeypatch, tmp_path):
    whole = train_log(make_log(), make_config("whole", propensity_design="auto", estimator="joint"))
    cut = make_config("cut", propensity_design="auto", estimator="joint")
    train_until(6, make_log(), cut, "hidden")
    with monkeypatch.context() as patch:
        interrupt(patch, 0, "constant")  # raises if that design is trained again
        with pytest.raises(Interrupted):
            copy = shutil.copytree(cut.output, tmp_path / "copy")
            train_log(make_log(), replace(cut, output=copy, overwrite=True))
        resumed = train_log(make_log(), replace(cut, resume=True))
    assert resumed.designs == pytest.approx(dict(whole.designs))
    assert largest_difference(whole, resumed) < 1e-6


def test_a_damaged_design_is_trained_anew(make_log, make_config):
    config = make_config(propensity_design="auto", estimator="joint")
    whole = train_log(make_log(), replace(config, output=f"{config.output}.whole"))
    train_until(6, make_log(), config, "hidden")
    kept = Path(config.output) / "checkpoints" / "constant" / "model"
    flip(kept / "model.safetensors")
    with pytest.warns(UserWarning, match=r"constant/model is passed over: model.safetensors holds other bytes"):
        resumed = train_log(make_log(), replace(config, resume=True))
    assert largest_difference(whole, resumed) == 0
    assert resumed.designs == pytest.approx(dict(whole.designs))


def test_resume_of_auto_keeps_metrics_that_are_no_numbers(make_log, make_config):
    """A signal that was never recorded in the held-out rows has no rates there; JSON has no NaN."""
    log = make_log()
    heldout = replace(make_log(16, seed=1), feedback=np.where([True, False], make_log(16, seed=1).feedback, -1))
    config = make_config(propensity_design="auto", estimator="joint")
    train_until(6, log, config, "hidden", heldout=heldout)
    result = train_log(log, replace(config, resume=True), heldout=heldout)
    assert result.design == "constant"
    assert all(isinstance(value, float) for value in result.metrics.values())
    assert np.isnan(result.metrics["share_observed"])


def test_resume_replaces_the_metrics_of_an_older_version(make_log, make_config):
    config = make_config()
    train_until(6, make_log(), config)
    path = Path(config.output) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"propensity_design"', '"propensity"'))
    train_log(make_log(), replace(config, resume=True))
    steps = [(line["step"], "loss" in line, "eval_nll" in line) for line in metrics_of(config)]
    assert len(steps) == len(set(steps))


def test_resume_notices_another_log(make_log, make_config):
    log, config = make_log(), make_config()
    train_until(6, log, config)
    again = replace(config, resume=True)
    feedback = log.feedback.copy()
    feedback[0, 0] ^= 1
    for other, text in [
        (make_log(47), "47 rows instead of 48"),
        (replace(log, feedback=feedback), "48 rows as before, but other content"),
        (replace(log, messages=[*log.messages[1:], log.messages[0]]), "other content"),
    ]:
        with pytest.raises(ValueError, match=f"log has changed.*{text}.*--overwrite"):
            train_log(other, again)
    assert train_log(log, again).metrics


def test_resume_finds_the_same_logging_steps(make_log, make_config, monkeypatch):
    """Transformers warns where the steps in the arguments are not those that its checkpoint holds."""
    seen = []
    training_step = ImplicitTrainer.training_step

    def watched(self, *args, **kwargs):
        seen.append((self.args.logging_steps, self.state.logging_steps))
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(ImplicitTrainer, "training_step", watched)
    train_log(make_log(150), make_config(epochs=1, batch_size=1, validation_fraction=0))
    assert set(seen) == {(3, 3)}


def test_resume_takes_the_rows_in_the_same_order(make_log, make_config, monkeypatch):
    """Also where another order would have as many steps."""
    config = make_config(eval_steps=4)
    train_until(6, make_log(), config)
    for name, value, message in [
        ("rows_per_pass", 16, "steps: got 3; the interrupted run had 5"),
        ("seed", 1, r"order: got \d+; the interrupted run had \d+"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "_NO_RESULT", {*run_folder._NO_RESULT, "seed"})
            if name == "rows_per_pass":
                patch.setattr(TrainConfig, name, value)
            other = replace(config, resume=True, **({} if name == "rows_per_pass" else {name: value}))
            with pytest.raises(ValueError, match=f"resume: {message}"):
                train_log(make_log(), other)
    with monkeypatch.context() as patch:
        patch.setattr(attention, "obstacle", lambda name, *args: None if name == "sdpa" else "not here")
        with pytest.raises(ValueError, match=r"resume: rows: got padded; the interrupted run had packed"):
            train_log(make_log(), replace(config, resume=True))
    assert train_log(make_log(), replace(config, resume=True)).metrics


def test_a_resumed_run_prints_the_date_of_its_first_day(make_log, make_config, tmp_path):
    """A template that asks for the date makes the same tokens after a night as before it."""
    config = make_config(epochs=1, precision="float32")
    begun = describe(make_log(), None) | {"date": "2026-01-05"}
    run_folder.begin_run(config, begun)
    assert run_folder.date_of_run(replace(config, resume=True)) == "2026-01-05"
    assert run_folder.date_of_run(config) == datetime.date.today().isoformat()
    run_folder.check_output(replace(config, resume=True), begun | {"date": "2026-01-06"})
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    tokenizer.chat_template = DATED
    model = shutil.copytree(config.model, tmp_path / "dated")
    tokenizer.save_pretrained(model)
    dated = replace(config, model=str(model), resume=True, output=str(tmp_path / "dated_run"))
    run_folder.begin_run(dated, begun)
    result = train_log(make_log(), dated)
    assert "05.01.2026" in render(result.model.tokenizer, [{"role": "user", "content": "Hi"}])


def edit_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"chat_template": "{% for m in messages %}{{ m['content'] }}!{% endfor %}"}))


def edit_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    kept = json.loads(path.read_text())
    kept["model"]["merges"] = kept["model"]["merges"][:-1]
    path.write_text(json.dumps(kept))


def edit_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    held = bytearray(path.read_bytes())
    held[-2] ^= 1
    path.write_bytes(bytes(held))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edit_template, "model: its chat template has changed since the run"),
        (edit_tokenizer, "model: its tokenizer has changed since the run"),
        (edit_weights, "model: its weights have changed since the run"),
    ],
)
def test_resume_notices_another_model(make_log, make_config, tmp_path, save_llama, save_tokenizer, edit, said):
    """Half of the run would be on other tokens, or from other weights."""
    model = tmp_path / "model"
    save_llama(model, save_tokenizer(model))
    config = replace(make_config(), model=str(model), estimator="joint")
    train_until(6, make_log(), config)
    again, moved = replace(config, resume=True), tmp_path / "moved"
    edit(model)
    with pytest.raises(ValueError, match=f"{said}.*bring back the files of the model to resume it, or use --overwrite"):
        train_log(make_log(), again)
    model.rename(moved)
    save_llama(model, save_tokenizer(model))
    assert train_log(make_log(), again).metrics


def test_resume_notices_other_tokens(make_log, make_config, monkeypatch):
    """As of another version of a library, which the files of the model do not show."""
    config = make_config(estimator="joint")
    train_until(6, make_log(), config)

    def shorter(*args):
        rows, longer = encode_texts(*args)
        return [row[1:] for row in rows], longer

    monkeypatch.setattr("irm_fast.training.row_tokens.encode_texts", shorter)
    with pytest.raises(ValueError, match="tokens: the rows are other tokens than those of the interrupted run"):
        train_log(make_log(), replace(config, resume=True))
