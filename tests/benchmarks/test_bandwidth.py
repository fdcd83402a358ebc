"""What benchmarks/gpu.sh measures of kernels, rehearsed: launches are compiled and timed, but not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys, time
sys.modules['datasets'] = None  # a machine with a GPU need not have the extra `hub`
from benchmarks import bandwidth
from tests.gpu_static.launches import launching

class Event:
    def record(self): self.at = time.perf_counter()
    def elapsed_time(self, end): return 1e3 * (end.at - self.at)

found = []
with launching('sm_90', lambda launch: time.sleep(1e-3)):
    for name in ('loss K=1 float32', 'pointwise float32'):
        measured = bandwidth.measure(name, 2**10, 'cpu', Event, lambda: None)
        found.append(bandwidth.shares(name, measured, 1e6, bandwidth.DEVICES['h100']))
        print(*bandwidth.lines(name, 2**10, found[-1]), sep='\\n', file=sys.stderr)
print(json.dumps(found))
"""


def test_each_kernel_is_timed_in_a_step(tmp_path: Path) -> None:
    """Kernels of 1 ms that read 9, 17 and 16 bytes a row."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(tmp_path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loss, pointwise = json.loads(done.stdout)
    assert [x["bytes"] for x in [*loss, *pointwise]] == [9 * 2**10, 17 * 2**10, 16 * 2**10]
    for kernel in [*loss, *pointwise]:
        assert 1e-3 < kernel["seconds"] < 1e-2
        assert kernel["bytes_a_second"] == pytest.approx(kernel["bytes"] / kernel["seconds"])
        assert kernel["of_copy"] == pytest.approx(kernel["bytes_a_second"] / 1e6)
        assert kernel["of_peak"] == pytest.approx(kernel["bytes_a_second"] / 3.35e12)
        assert 0.5 < kernel["predicted_of_copy"] <= 1
    assert done.stderr.count("of peak") == 3


def test_names_of_devices() -> None:
    """Only variants whose memory is that of the data sheet."""
    import re

    from benchmarks.bandwidth import NAMES
    from benchmarks.predict import DEVICES

    assert NAMES.keys() == DEVICES.keys()
    known = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA B200": "b200",
        "AMD Instinct MI300X": "mi300x",
    }
    others = dict.fromkeys(("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-80GB"))
    for name, key in (known | others).items():
        assert [k for k, pattern in NAMES.items() if re.search(pattern, name)] == [key] * (key is not None)
