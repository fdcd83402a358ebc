"""What memory rows take on their way through a command, in a process of its own for each number of rows.

    python -m benchmarks.memory train|score|embed FOLDER [--rows 20000 200000]

Makes logs of short rows and a tiny decoder in FOLDER, and prints for each step of the command the most anonymous memory
(RssAnon, every 20 ms) above that before the first step, and at the end the largest resident memory (ru_maxrss), which
counts pages of files too. The last line is what a row takes by the two largest numbers of rows. `train` goes through
all steps of a run before its first epoch, and through some steps of training.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

COMMANDS = ("train", "score", "embed")
_MB = 2**20


def anonymous() -> int:
    """The bytes of anonymous memory that this process holds."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


class Steps:
    """Notes the most anonymous memory of each step, above that at the beginning."""

    def __init__(self) -> None:
        self.first = self.most = anonymous()
        self.found: dict[str, float] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, anonymous())
            time.sleep(0.02)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step; its peak, what it leaves and its seconds are noted."""
        self.most, start = anonymous(), time.perf_counter()
        yield
        self.found[name] = (max(self.most, anonymous()) - self.first) / _MB
        left = (anonymous() - self.first) / _MB
        seconds = time.perf_counter() - start
        print(f"  {name:<12} peak {self.found[name]:7.0f} MB, left {left:7.0f} MB, {seconds:6.1f} s", file=sys.stderr)


def make_rows(path: Path, count: int) -> None:
    """Write a log of short rows, a hundred thousand users."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            feedback = {"copy": int(i % 7 == 0), "share": int(i % 11 == 0)}
            row = {"id": f"r{i}", "prompt": f"w{i % 3000} w{i % 77} of {i}", "completion": f"w{i % 911} w{i % 13} w{i}"}
            file.write(json.dumps({**row, "feedback": feedback, "user_id": f"u{i % 100_000}"}) + "\n")


def make_models(folder: Path) -> None:
    """Write a tiny decoder and a reward model of it."""
    from irm_fast.data.signals import RewardSpec
    from irm_fast.experiments.tiny_decoder import make_tiny_decoder
    from irm_fast.models.reward_model import ImplicitRewardModel

    if (folder / "reward_model").is_dir():
        return
    make_tiny_decoder((f"w{i} of" for i in range(1000)), folder / "model", hidden_size=32, layers=1)
    spec = RewardSpec("constant", ("copy", "share"), (1, 1), (0.0, 0.0))
    ImplicitRewardModel.from_backbone(str(folder / "model"), spec).save(folder / "reward_model")


def train(folder: Path, data: Path, steps: Steps) -> None:
    """The steps of a training run, up to some steps of the optimiser."""
    from irm_fast.training.build import trial_loop
    from irm_fast.training.config import TrainConfig
    from irm_fast.training.plan import plan_of, try_steps
    from irm_fast.training.prepare import prepare_run, read_data

    how = {"propensity_design": "constant", "token_budget": 4096, "max_length": 256, "epochs": 1, "progress": False}
    model, out = str(folder / "model"), str(folder / "out")
    config = TrainConfig(model=model, data=str(data), output=out, report_to="none", precision="float32", **how)
    with steps.step("read"):
        log = read_data(config)
    with steps.step("prepare"):
        prepared = prepare_run(log, config)
        del log
    with trial_loop(prepared, config) as loop:
        with steps.step("plan"):
            plan_of(prepared, config, *loop)
            assert loop.trainer.packs.plan
        with steps.step("some steps"):
            try_steps(loop.trainer)


def score(folder: Path, data: Path, steps: Steps) -> None:
    """Score all rows."""
    from irm_fast.evaluation.rewards_file import score_file

    with steps.step("score"), TemporaryDirectory(dir=folder) as scratch:
        score_file(folder / "reward_model", data, Path(scratch) / "rewards.jsonl")


def embed(folder: Path, data: Path, steps: Steps) -> None:
    """Embed all rows into a folder."""
    from irm_fast.data.conversations import read_conversations
    from irm_fast.embeddings.embedder import Embedder
    from irm_fast.embeddings.writing import write_embeddings

    with steps.step("embed"), TemporaryDirectory(dir=folder) as scratch:
        rows = read_conversations(data)
        write_embeddings(*rows, Embedder(folder / "model"), Path(scratch) / "embeddings", progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--one", action="store_true", help="measure in this process, the first number of rows alone")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.one:
        import torch
        import transformers

        torch.zeros(1), transformers.__version__, make_models(args.folder)
        path = args.folder / f"rows-{args.rows[0]}.jsonl"
        if not path.exists():
            make_rows(path, args.rows[0])
        steps = Steps()
        globals()[args.command](args.folder, path, steps)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"rows": args.rows[0], "anonymous": max(steps.found.values()), "resident": resident}))
        return
    found = []
    for rows in sorted(args.rows):
        print(f"{args.command}, {rows:,} rows", file=sys.stderr)
        command = [sys.executable, "-m", __spec__.name, args.command, str(args.folder), "--one", "--rows", str(rows)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(run.stdout.splitlines()[-1]))
        print(f"  anonymous {found[-1]['anonymous']:.0f} MB, resident {found[-1]['resident']:.0f} MB", file=sys.stderr)
    for kind in ("anonymous", "resident") if len(found) > 1 else ():
        more = (found[-1][kind] - found[-2][kind]) * _MB / (found[-1]["rows"] - found[-2]["rows"])
        print(f"{args.command}: {more:.0f} bytes a row, {kind}")


if __name__ == "__main__":
    main()
