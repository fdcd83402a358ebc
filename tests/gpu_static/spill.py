"""A kernel that must spill.

python -m tests.gpu_static.spill sm_90    print its bytes of stack a thread
"""

from __future__ import annotations

import re
import sys

import torch
import triton
import triton.language as tl

from tests.gpu_static.launches import Launch, launching


@triton.jit
def greedy_kernel(x_ptr, N: tl.constexpr):
    o = tl.arange(0, N)
    b_x = tl.load(x_ptr + o)
    tl.store(x_ptr + o, b_x / tl.sum(b_x * b_x))


def main(target: str) -> None:
    """Compile the kernel for one warp of 16,384 numbers."""

    def run(launch: Launch) -> None:
        from tests.gpu_static.sass import Code

        if "cubin" in launch.kernel.files:
            print(Code(launch.kernel.binary).stack)
        else:
            text = launch.kernel.files["amdgcn"].read_text()
            print(re.findall(r"\.private_segment_fixed_size:\s+(\d+)", text)[0])

    with launching(target, run):
        greedy_kernel[(1,)](
            torch.empty(16384 * 2), N=16384 if target != "gfx942" else 32768, num_warps=1, enable_fp_fusion=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
