"""The recipes of docs/how/own-training.md, run as they stand there, by one process or several.

A recipe is the Python block under a heading. Names of folders in it are replaced, and of its settings the learning rate
and the order of the rows, so that its losses can be held to those of the product's trainer.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

DOCS = Path(__file__).parents[2] / "docs" / "how" / "own-training.md"
RATE = 3e-4
Result = tuple[list[float], list[float]]  # the losses of the steps, and the scalars that were learned


def block(heading: str) -> str:
    """The Python block under a heading of the page."""
    text = DOCS.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


def changed(code: str, changes: dict[str, str]) -> str:
    """The code with each piece replaced, which has to be there once."""
    for old, new in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


class Recorder:
    """Adds up the loss of each step, of which every call gives a part."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.losses = scale, []

    def watch(self, loss_func: Any) -> Any:
        def watched(*arguments: Any, **keywords: Any) -> Any:
            loss = loss_func(*arguments, **keywords)
            self.losses.append(self.scale * float(loss.detach()))
            return loss

        return watched

    def steps(self) -> list[float]:
        """The losses of steps of two micro-batches."""
        return [sum(self.losses[i : i + 2]) for i in range(0, len(self.losses), 2)]


def common(model: str, log: str) -> dict[str, Any]:
    """The names that the first block defines."""
    code = block("The model and its rows").replace('"MODEL"', repr(model)).replace('"log.jsonl"', repr(log))
    names: dict[str, Any] = {"MODEL": model}
    exec(code, names)
    return names


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def bare(names: dict[str, Any], start: dict[str, torch.Tensor], out: Path) -> Result:
    if processes() > 1:
        torch.distributed.init_process_group("gloo")
    exec(block("A loop of one's own"), names)
    size = 8 // processes()
    steps = names["train"](names["model"], names["examples"], names["collate"], batch_size=size, lr=RATE, shuffle=False)
    return [float(loss) for loss in steps], scalars(names["model"].heads)


ARGUMENTS = """
    lr_scheduler_type="constant", max_grad_norm=0.0, train_sampling_strategy="sequential", use_cpu=True,
    report_to="none", disable_tqdm=True, save_strategy="no","""


def trainer(names: dict[str, Any], start: dict[str, torch.Tensor], out: Path) -> Result:
    changes = {
        '"out",': f"{str(out / 'trainer')!r},{ARGUMENTS}",
        "per_device_train_batch_size=8": f"per_device_train_batch_size={8 // processes()}",
        "learning_rate=2e-5": f"learning_rate={RATE}",
        "irm_fast.hf.compute_loss_func()": "recorder.watch(irm_fast.hf.compute_loss_func())",
    }
    recorder = names["recorder"] = Recorder()
    exec(changed(block("transformers.Trainer"), changes), names)
    return recorder.steps(), scalars(names["model"].heads)


def in_lightning(names: dict[str, Any], start: dict[str, torch.Tensor], out: Path) -> Result:
    """Lightning divides by the number of micro-batches and of processes; it would shuffle the rows."""
    quiet = 'accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False'
    how = (
        f'{quiet}, default_root_dir={str(out)!r}, devices={processes()}, strategy="ddp", use_distributed_sampler=False'
    )
    sampler = f"DistributedSampler(examples, {processes()}, {os.environ.get('RANK', 0)}, shuffle=False)"
    changes = {
        "batch_size=8, shuffle=True": f"batch_size={8 // processes()}, sampler={sampler}",
        "max_epochs=1": f"max_epochs=1, {how}",
        "LightningReward(model)": f"LightningReward(model, {RATE})",
        "irm_fast.implicit_rm_loss(": "recorder.watch(irm_fast.implicit_rm_loss)(",
    }
    exec("from torch.utils.data import DataLoader, DistributedSampler", names)
    recorder = names["recorder"] = Recorder(1 / (2 * processes()))
    exec(changed(block("Lightning"), changes), names)
    return recorder.steps(), scalars(names["model"].heads)


def trl(names: dict[str, Any], start: dict[str, torch.Tensor], out: Path) -> Result:
    """What it saves is a sequence classifier without further weights, with the reward that was trained."""
    from transformers import AutoModelForSequenceClassification

    weights = {name.replace("backbone.", "model."): x for name, x in start.items() if "heads" not in name}
    names["weights"] = {**weights, "score.weight": start["heads.reward_weight"][None]}
    names["scalars"] = {name: start[f"heads.{name}"] for name in ("reward_bias", "propensity_bias")}
    load = "classifier.load_state_dict(weights, strict=False)\nclassifier.signal_heads.load_state_dict(scalars)\n"
    folder = out / "reward_model"
    changes = {
        'RewardConfig("out",': f"RewardConfig({str(out / 'trl')!r}, bf16=False, num_train_epochs=1,{ARGUMENTS}",
        "per_device_train_batch_size=8": f"per_device_train_batch_size={8 // processes()}",
        "learning_rate=2e-5": f"learning_rate={RATE}",
        "irm_fast.hf.compute_loss_func()": "recorder.watch(irm_fast.hf.compute_loss_func())",
        "hook = ": f"{load}hook = ",
    }
    code = block("TRL").replace('"MODEL"', repr(names["MODEL"])).replace('"reward_model"', repr(str(folder)))
    recorder = names["recorder"] = Recorder()
    exec(changed(code, changes), names)
    if not int(os.environ.get("RANK", 0)):
        saved, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not loading["unexpected_keys"] and not loading["missing_keys"]
        assert torch.equal(saved.score.weight, names["classifier"].score.weight)
    return recorder.steps(), [x for parameter in names["groups"][1]["params"] for x in parameter.tolist()]


def scalars(heads: Any) -> list[float]:
    return [*heads.reward_bias.tolist(), *heads.propensity_bias.tolist()]


RECIPES = {"bare": bare, "trainer": trainer, "lightning": in_lightning, "trl": trl}


def main(recipe: str, model: str, log: str, start: str, out: str) -> None:
    """Run a recipe; its losses and the scalars that it learned are written to a file for each process."""
    torch.set_num_threads(1)
    names, weights = common(model, log), torch.load(start)
    names["model"].load_state_dict(weights)
    losses, learned = RECIPES[recipe](names, weights, Path(out))
    found = {"losses": losses, "scalars": learned}
    (Path(out) / f"{recipe}.{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
