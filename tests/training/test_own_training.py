"""The recipes of docs/how/own-training.md: their losses are those of `irm-fast train`, and their scalars learn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

import irm_fast
from irm_fast.models.reward_model import ImplicitRewardModel
from irm_fast.training.run import train_log
from irm_fast.training.trainer import ImplicitTrainer
from tests.training import forked, own_loop
from tests.training.training_cases import write_log

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}</s>"
ROWS, STEP = 96, 16


class Product(NamedTuple):
    """A run of `train_log`, and what a recipe needs to repeat it."""

    model: str
    log: str  # its rows in the order in which the steps took them
    start: str  # the weights at the start, under the names of the recipe's model
    losses: list[float]  # of each step
    first: list[float]  # the scalars at the start
    last: list[float]  # and at the end


@pytest.fixture(scope="module")
def products() -> dict[int, Product]:
    return {}  # by number of signals


@pytest.fixture
def product(request, products, make_log, make_config, save_llama, save_tokenizer, tmp_path_factory) -> Product:
    k = request.param
    if k in products:
        return products[k]
    folder = tmp_path_factory.mktemp("product")
    (folder / "model").mkdir()
    save_llama(folder / "model", save_tokenizer(folder / "model", template=TEMPLATE))
    log, seen, start = make_log(ROWS, ("copy", "share")[:k]), [], {}
    compute_loss = ImplicitTrainer.compute_loss

    def recorded(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not start:
            start.update({name: x.clone() for name, x in self.core.state_dict().items()})
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        seen.append((inputs["row"].tolist(), float(loss.detach())))
        return loss

    settings = {"epochs": 1, "batch_size": STEP, "validation_fraction": 0, "learning_rate": own_loop.RATE}
    settings |= {"warmup_ratio": 0, "trainer": {"lr_scheduler_type": "constant", "max_grad_norm": 0.0}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImplicitTrainer, "compute_loss", recorded)
        # Far from the rates of the log, at which there would be little to learn.
        patch.setattr(ImplicitRewardModel, "start_at", lambda self, _: self.propensity_design.bias.data.fill_(-2.0))
        result = train_log(log, replace(make_config(f"product{k}", **settings), model=str(folder / "model")))
    rows = [row for step, _ in seen for row in step]
    assert sorted(rows) == list(range(ROWS)) and len(seen) == ROWS // STEP
    write_log(log.subset(np.array(rows)), folder / "log.jsonl")

    heads = result.model.heads
    names = {"heads.reward.weight": "heads.reward_weight", "heads.propensity_design.bias": "heads.propensity_bias"}
    start = {names.get(name, name): x for name, x in start.items()}
    start["heads.reward_weight"] = start["heads.reward_weight"].squeeze(0)
    torch.save(start, folder / "start.pt")
    products[k] = Product(
        model=str(folder / "model"),
        log=str(folder / "log.jsonl"),
        start=str(folder / "start.pt"),
        losses=[loss for _, loss in seen],
        first=[*start["heads.reward_bias"].tolist(), *start["heads.propensity_bias"].tolist()],
        last=[*heads.reward_bias.tolist(), *heads.propensity_design.bias.tolist()],
    )
    return products[k]


@pytest.mark.parametrize("product", [1, 2], indirect=True)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("recipe", own_loop.RECIPES)
def test_a_recipe_trains_as_the_product_does(recipe: str, processes: int, product: Product, tmp_path: Path) -> None:
    """In steps of two micro-batches, by one process or two."""
    if recipe in ("lightning", "trl"):
        pytest.importorskip(recipe, exc_type=ImportError)
    arguments = (recipe, product.model, product.log, product.start, str(tmp_path))
    assert forked.run(arguments, processes, tmp_path, own_loop.main) == [0] * processes
    found = [json.loads((tmp_path / f"{recipe}.{rank}.json").read_text()) for rank in range(processes)]
    losses = np.sum([one["losses"] for one in found], axis=0)
    np.testing.assert_allclose(losses, product.losses, rtol=0, atol=1e-6)
    for one in found:
        np.testing.assert_allclose(one["scalars"], product.last, rtol=0, atol=1e-5)
    farthest = own_loop.RATE * ROWS / STEP  # that the backbone's learning rate could move a scalar
    assert np.abs(np.subtract(product.last, product.first))[1:].min() > 10 * farthest


@pytest.mark.parametrize("product", [2], indirect=True)
def test_what_the_page_saves_is_a_sequence_classifier(product: Product, tmp_path: Path) -> None:
    from transformers import pipeline

    names = own_loop.common(product.model, product.log)
    names["model"].load_state_dict(torch.load(product.start))
    names["model"].heads.reward_bias.data.fill_(0.5)
    code = own_loop.block("A checkpoint that others read").replace('"MODEL"', repr(product.model))
    exec(code.replace('"reward_model"', repr(str(tmp_path))), names)
    batch = names["collate"]([{"input_ids": example["input_ids"]} for example in names["examples"][:5]])
    want = names["model"](**batch)["reward_logits"] - 0.5
    read = pipeline("text-classification", model=str(tmp_path))
    got = [row["score"] for row in read(names["texts"][:5], add_special_tokens=False)]
    assert want.std() > 1e-3
    np.testing.assert_allclose(got, want.detach(), rtol=0, atol=1e-6)


class Small(torch.nn.Module):
    """Heads on three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = irm_fast.SignalHeads(3, 2, "hidden", rates=[0.2, 0.3])
        torch.nn.init.normal_(self.heads.reward_weight)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.heads(x)._asdict()


def test_the_trainer_evaluates_and_predicts_by_rows(tmp_path: Path) -> None:
    """Also where the last batch is smaller; without `label_names` there are no labels, which is said."""
    torch.manual_seed(0)
    model, x, feedback = Small(), torch.randn(21, 3), torch.randint(-1, 2, (21, 2))
    rows = [{"x": a, "labels": b} for a, b in zip(x, feedback, strict=True)]

    def trainer(**settings: Any) -> Trainer:
        quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        args = TrainingArguments(str(tmp_path), per_device_eval_batch_size=8, **quiet, **settings)
        loss_func = irm_fast.hf.compute_loss_func()
        return Trainer(model, args, train_dataset=rows, eval_dataset=rows, compute_loss_func=loss_func)

    whole = trainer(label_names=["labels"])
    want = irm_fast.implicit_rm_loss(*model.heads(x), feedback).item()
    assert whole.evaluate()["eval_loss"] == pytest.approx(want, rel=1e-6)
    for got, logits in zip(whole.predict(rows).predictions, model.heads(x), strict=True):
        np.testing.assert_allclose(got, logits.detach(), rtol=1e-6)
    with pytest.raises(TypeError, match="labels: got NoneType"):
        trainer().train()


def test_every_block_of_the_page_is_run() -> None:
    headings = {"The model and its rows", "A loop of one's own", "transformers.Trainer", "Lightning", "TRL"}
    assert own_loop.DOCS.read_text().count("```python") == len({*headings, "A checkpoint that others read"})
    for heading in headings:
        assert own_loop.block(heading)
