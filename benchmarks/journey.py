"""How many of our files one call passes through: `python -m benchmarks.journey loss|train`.

Follows the calls with `sys.setprofile` from the public function to the first call of a kernel, and prints the files in
the order of their first visit, how many there are, and how often control changes from one of our files to another.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KERNEL = ("cpu/implicit_rm.py", "cpu/linear_implicit_rm.py", "triton/implicit_rm.py", "triton/linear_implicit_rm.py")


class Arrived(BaseException):
    """The first kernel was called."""


def follow(call: Callable[[], Any]) -> list[str]:
    """Our files in the order in which control came to them, up to the first call of a kernel."""
    visits: list[str] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        inside = frame if event == "call" else frame.f_back
        file = inside.f_code.co_filename if inside is not None else ""
        if not file.startswith((f"{ROOT}/irm_fast/", f"{ROOT}/kernels/")):
            return
        name = file.removeprefix(f"{ROOT}/")
        if not visits or visits[-1] != name:
            visits.append(name)
        if event == "call" and name.endswith(KERNEL) and inside.f_code.co_name != "<module>":  # type: ignore[union-attr]
            sys.setprofile(None)
            raise Arrived

    sys.setprofile(watch)
    threading.setprofile(watch)
    try:
        with contextlib.suppress(Arrived):
            call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return visits


def one_loss() -> Callable[[], Any]:
    """A step of the loss on the CPU; once before, so that no import is counted."""
    import torch

    import irm_fast

    feedback = torch.randint(0, 2, (32, 2))
    reward, propensity = torch.zeros(32, requires_grad=True), torch.zeros(32, 2, requires_grad=True)

    def call() -> None:
        irm_fast.implicit_rm_loss(reward, propensity, feedback)

    call()
    return call


def a_training_run(folder: Path) -> Callable[[], Any]:
    """A run of one epoch on a tiny model and a log of 8 rows; once before, so that no import is counted."""
    import irm_fast
    from irm_fast.experiments.tiny_decoder import make_tiny_decoder

    log = folder / "log.jsonl"
    rows = [
        {
            "id": str(i),
            "prompt": f"question {i}",
            "completion": "good " * (1 + i % 7),
            "feedback": {"copy": i % 2, "share": i // 2 % 2},
        }
        for i in range(8)
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    decoder = make_tiny_decoder([row["prompt"] + row["completion"] for row in rows], folder / "decoder", seed=0)  # type: ignore[operator]
    settings: dict[str, Any] = {"model": str(decoder), "data": str(log), "progress": False}
    settings |= {"epochs": 1, "batch_size": 8, "propensity_design": "constant"}
    before, config = (irm_fast.TrainConfig(output=str(folder / name), **settings) for name in ("before", "run"))
    irm_fast.train(before)
    return lambda: irm_fast.train(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("journey", choices=("loss", "train"))
    journey = parser.parse_args().journey
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            visits = follow(one_loss() if journey == "loss" else a_training_run(Path(folder)))
    files = list(dict.fromkeys(visits))
    print("\n".join(files))
    print(f"{journey}: {len(files)} files, {len(visits) - 1} changes of file")


if __name__ == "__main__":
    main()
