"""A step that is not finite changes nothing, is named, and ends the run or is counted; no model of NaN is saved."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from irm_fast.evaluation.scoring import heldout_step
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training import trainer, watch
from irm_fast.training.run import train_log
from irm_fast.training.trainer import ImplicitTrainer
from irm_fast.training.watch import NumericalWatch
from tests.training import diverging_run, forked
from tests.training.training_cases import metrics_of, parameters, use_sgd, write_log, write_pairs


@contextmanager
def poisoned(step: int, row: int | None = None, value: float = math.nan, steps: int = 1):
    """A context in which so many steps of training multiply hidden states by this value: of one row, or of all."""
    with pytest.MonkeyPatch.context() as patch:
        diverging_run.poison(patch.setattr, step, row, value, steps)
        yield


@pytest.mark.parametrize("heldout", [0, 0.25])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_ends_the_run(make_log, make_config, heldout, value):
    config = make_config(validation_fraction=heldout, eval_steps=2)
    with (
        poisoned(5, value=value),
        pytest.raises(RuntimeError, match=r"diverged at step 5: .*its \d rows by itself: 'row-\d+'"),
    ):
        train_log(make_log(), config)
    assert not list(Path(config.output).glob("*.safetensors")) and not (Path(config.output) / "irm_fast.json").exists()


OF_ROW_7 = r"diverged at step \d+: .*of its 8 rows these are not by themselves: 'row-7'\. That step"


def test_a_row_whose_state_was_not_finite_is_named(make_log, make_config):
    with poisoned(0, row=7, steps=1000), pytest.raises(RuntimeError, match=OF_ROW_7):
        train_log(make_log(), make_config(validation_fraction=0))


def test_a_row_whose_loss_is_not_finite_is_named(make_log, make_config, monkeypatch):
    """Its states are finite: its loss shows when the step is looked at again."""

    def looked_at(model, core, batch):
        loss, reward, propensity = heldout_step(model, core, batch)
        return torch.where(batch["row"] == 7, math.inf, loss), reward, propensity

    monkeypatch.setattr(watch, "heldout_step", looked_at)
    norm = ImplicitTrainer._get_grad_norm

    def spoiled(self, *args, **kwargs):
        if any((batch["row"] == 7).any() for batch in self.watch.batches):
            self.core.heads.reward_bias.grad.fill_(math.inf)
        return norm(self, *args, **kwargs)

    monkeypatch.setattr(ImplicitTrainer, "_get_grad_norm", spoiled)

    with pytest.raises(RuntimeError, match=OF_ROW_7):
        train_log(make_log(), make_config(validation_fraction=0, trainer={"max_grad_norm": 0}))


def test_a_run_that_ended_goes_on_without_the_step(make_log, make_config):
    config = make_config(validation_fraction=0, eval_steps=2)
    with poisoned(5), pytest.raises(RuntimeError, match="step 5"):
        train_log(make_log(), config)
    with poisoned(5), pytest.warns(UserWarning, match=r"step 5: .* left out, the 1\. of 10"):
        again = train_log(make_log(), replace(config, on_nonfinite="skip", resume=True))
    whole = make_config("whole", validation_fraction=0, eval_steps=2, on_nonfinite="skip")
    with poisoned(5), pytest.warns(UserWarning, match="step 5"):
        other = train_log(make_log(), whole)
    assert torch.equal(parameters(again), parameters(other))
    assert again.skipped_steps == other.skipped_steps == 1
    assert json.loads((Path(whole.output) / "irm_fast.json").read_text())["skipped_steps"] == 1
    losses = [entry["loss"] for entry in metrics_of(whole) if "loss" in entry]
    assert losses.count(None) == 1 and losses[-1] is not None  # it shows, and does not stay


CASES = {
    "plain": {},
    "accumulated": {"gradient_accumulation": 2, "batch_size": 4},
    "bfloat16": {"precision": "bfloat16"},
    "padded": {"attn": "sdpa"},
    "not clipped": {"trainer": {"max_grad_norm": 0}},
    "foreach": {"optim": "adamw_torch"},
    "adafactor": {"optim": "adafactor"},
    "adapters": {"lora_rank": 2},
    "compiled": {"compile": True},
    "ema": {"objective": "stratified", "stratification": "ema"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_that_is_not_finite_leaves_weights_and_moments_as_they_are(make_log, make_config, monkeypatch, case):
    seen = {}
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # inductor takes minutes

    def state(trainer) -> list[Tensor]:
        optimizer = trainer.optimizer.optimizer
        parts = [part for entry in optimizer.state.values() for part in entry.values()]
        tensors = [p.detach() for p in trainer.core.parameters() if p.requires_grad]
        return [*tensors, *(part for part in parts if isinstance(part, Tensor))]

    norm, log = ImplicitTrainer._get_grad_norm, NumericalWatch.on_step_end

    def before(self, *args, **kwargs):
        seen[self.state.global_step + 1] = [[part.clone() for part in state(self)]]
        seen["trainer"] = self
        return norm(self, *args, **kwargs)

    def after(self, *args, **kwargs):
        seen[args[1].global_step].append([part.clone() for part in state(seen["trainer"])])
        return log(self, *args, **kwargs)

    monkeypatch.setattr(ImplicitTrainer, "_get_grad_norm", before)
    monkeypatch.setattr(NumericalWatch, "on_step_end", after)
    config = make_config(validation_fraction=0, on_nonfinite="skip", **CASES[case])
    with poisoned(3), pytest.warns(UserWarning, match="step 3"):
        result = train_log(make_log(), config)
    assert all(torch.equal(one, other) for one, other in zip(*seen[3], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(*seen[4], strict=True))
    assert result.skipped_steps == 1 and parameters(result).isfinite().all()


@pytest.mark.parametrize("fsdp", [False, True])
def test_one_process_that_diverges_ends_all(make_log, make_config, tmp_path, fsdp):
    """The NaN is in the rows of the second process alone; each names the row and ends with the same error."""
    write_log(make_log(), tmp_path / "log.jsonl")
    config = make_config(data=str(tmp_path / "log.jsonl"), validation_fraction=0, fsdp=fsdp, batch_size=4)
    config.save(tmp_path / "run.yaml")
    with pytest.raises(RuntimeError) as said:
        forked.run((str(tmp_path / "run.yaml"), "stop"), 2, tmp_path, diverging_run.main)
    assert str(said.value).count("training diverged at step 3") == 2
    assert not (Path(config.output) / "irm_fast.json").exists()


@pytest.mark.parametrize("fsdp", [False, True])
def test_processes_skip_together(make_log, make_config, tmp_path, fsdp):
    write_log(make_log(), tmp_path / "log.jsonl")
    config = make_config(data=str(tmp_path / "log.jsonl"), validation_fraction=0, fsdp=fsdp, batch_size=4)
    config.save(tmp_path / "run.yaml")
    assert forked.run((str(tmp_path / "run.yaml"), "skip"), 2, tmp_path, diverging_run.main) == [0, 0]
    two = ImplicitRewardModel.load(config.output)
    with poisoned(3), pytest.warns(UserWarning, match="step 3"):
        one = train_log(make_log(), make_config("one", validation_fraction=0, on_nonfinite="skip"))
    flat = torch.cat([p.detach().flatten() for p in two.parameters()])
    assert float((flat - parameters(one)).abs().max()) < 1e-5


def test_too_many_steps_end_the_run(make_log, make_config):
    config = make_config(validation_fraction=0, on_nonfinite="skip", max_skipped_steps=2)
    with (
        poisoned(3, steps=1000),
        pytest.warns(UserWarning, match=r"the [12]\. of 2"),
        pytest.raises(RuntimeError, match="3 steps were left out, more than max_skipped_steps; step 5"),
    ):
        train_log(make_log(), config)


def test_the_last_step_is_judged(make_log, make_config):
    """Its flag is read though no step follows."""
    with poisoned(12), pytest.raises(RuntimeError, match="diverged at step 12"):
        train_log(make_log(), make_config(validation_fraction=0))


def test_weights_that_are_not_finite_are_not_saved(make_log, make_config, monkeypatch):
    """After the last step, whose own loss was finite."""
    end = NumericalWatch.on_step_end

    def spoil(self, args, state, control, **kwargs):
        if state.global_step == 12:
            self.core.heads.reward.weight.data[0, 3] = math.inf
        end(self, args, state, control, **kwargs)

    monkeypatch.setattr(NumericalWatch, "on_step_end", spoil)
    config = make_config(validation_fraction=0)
    with pytest.raises(RuntimeError, match=r"weights after step 12: 1 tensors .* heads\.reward\.weight; nothing"):
        train_log(make_log(), config)
    assert not (Path(config.output) / "checkpoints" / "constant" / "checkpoint-12").exists()


def test_a_model_with_weights_that_are_not_finite_is_not_saved(make_log, make_config, tmp_path):
    model = train_log(make_log(), make_config(epochs=1)).model
    model.heads.reward_bias.data.fill_(math.nan)
    with pytest.raises(RuntimeError, match="weights: 1 tensors hold NaN or inf, the first is reward_bias"):
        model.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_heldout_row_that_is_not_finite_is_named(make_log, make_config, monkeypatch):
    heldout = replace(make_log(12, seed=1), ids=[f"other-{i}" for i in range(12)])
    check = trainer.check_heldout

    def spoiled(predicted, *given):
        predicted.loss[4] = math.nan
        check(predicted, *given)

    monkeypatch.setattr(trainer, "check_heldout", spoiled)
    with pytest.raises(RuntimeError, match=r"after step 6 the held-out loss of 1 of 12 rows .* 'other-4'"):
        train_log(make_log(), make_config(), heldout=heldout)


def test_sides_of_pairs_are_named(make_log, make_config, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", range(16))
    log = make_log(16)
    with poisoned(0, row=17, steps=1000), pytest.raises(RuntimeError, match=r"by themselves: '.*, rejected'"):
        train_log(log, make_config(validation_fraction=0, pairs=pairs))


def test_a_guarded_loss_has_the_same_gradient():
    guard = NumericalWatch(SimpleNamespace(), None, None, None, None).guard  # type: ignore[arg-type]
    x = torch.randn(5, requires_grad=True)
    loss = (x**2).sum()
    guarded = guard(loss)
    assert torch.equal(guarded, loss)
    assert torch.equal(*(torch.autograd.grad(value, x, retain_graph=True)[0] for value in (guarded, loss)))
    flat = guard(loss + math.inf)  # an infinite loss whose own gradient is finite
    assert torch.autograd.grad(flat, x)[0].isnan().all()


def test_a_step_asks_for_no_value(make_log, make_config, monkeypatch):
    """What the watch does within a step reads no number off a tensor, of whatever device."""
    asked = []

    def refusing(name):
        method = getattr(Tensor, name)

        def called(self, *args, **kwargs):
            asked.append(name)
            return method(self, *args, **kwargs)

        return called

    def watched(name):
        method = getattr(NumericalWatch, name)

        def called(self, *args, **kwargs):
            with pytest.MonkeyPatch.context() as patch:
                for reader in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
                    patch.setattr(Tensor, reader, refusing(reader))
                return method(self, *args, **kwargs)

        monkeypatch.setattr(NumericalWatch, name, called)

    for name in ("begin", "guard", "mask"):
        watched(name)
    train_log(make_log(), make_config(epochs=1))
    assert not asked
    use_sgd(monkeypatch)  # which knows no found_inf
    train_log(make_log(), make_config("sgd", epochs=1))
    assert set(asked) == {"__bool__"}  # so the readers are seen
