"""The number of threads on a CPU, and how they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from irm_fast.models import threads
from irm_fast.models.packed import packed_attention
from irm_fast.models.reward_model import ImplicitRewardModel


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 8)


def test_small_models_get_one_thread_and_others_what_torch_has(eight_cores) -> None:
    assert threads.choose_threads(threads.SMALL - 1, 8, {}) == 1
    assert threads.choose_threads(threads.SMALL, 8, {}) == 8
    assert threads.choose_threads(threads.SMALL, 3, {}) == 3  # torch.set_num_threads(3)


def test_what_the_user_sets_stays(eight_cores) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        assert threads.choose_threads(1, 5, {name: "5"}) == 5
    assert threads.choose_threads(1, 5, {"OMP_NUM_THREADS": ""}) == 1


def test_no_more_threads_than_cores_that_may_be_used(eight_cores) -> None:
    assert threads.choose_threads(threads.SMALL, 64, {}) == 8  # torch counts cores beyond the quota
    assert threads.choose_threads(threads.SMALL, 64, {"LOCAL_WORLD_SIZE": "4"}) == 2
    assert threads.choose_threads(threads.SMALL, 64, {"LOCAL_WORLD_SIZE": "16"}) == 1


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group(files, granted, tmp_path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads._quota(tmp_path) == granted


def test_a_model_runs_with_its_threads_and_leaves_those_of_others(tiny_model, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    from irm_fast.data.signals import RewardSpec

    model = ImplicitRewardModel.from_backbone(tiny_model, RewardSpec("constant", signals=("copy",), polarity=(1,)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with packed_attention(model):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(threads, "SMALL", 0)
        monkeypatch.setattr(threads, "cores", lambda: 2)
        with packed_attention(model):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("given", "kept"), [(None, "passive"), ("active", "active")])
def test_the_program_makes_threads_sleep_before_torch_is_imported(given, kept) -> None:
    code = """
import os, sys
from irm_fast.cli import commands
commands.app = lambda **settings: print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
commands.main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [kept, "False"]
