"""What an installation of the core alone has to do: losses by the C++ kernel, the public names, the command line.

`python .ci/try_core.py`; with `--without-kernel` where no kernel was built.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import torch

import irm_fast

with_kernel = "--without-kernel" not in sys.argv
assert (irm_fast.backends()["cpu"] == "available") == with_kernel, irm_fast.backends()
torch.manual_seed(0)
reward, propensity = torch.randn(300), torch.randn(300, 2)
feedback = torch.randint(-1, 2, (300, 2))
gradients = []
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for backend in (None, "reference"):
        s, t = reward.clone().requires_grad_(), propensity.clone().requires_grad_()
        irm_fast.implicit_rm_loss(s, t, feedback, backend=backend).backward()
        gradients.append(torch.cat([s.grad[:, None], t.grad], 1))
assert len(said) == (not with_kernel), [str(one.message) for one in said]
torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
for name in irm_fast.__all__:
    try:
        getattr(irm_fast, name)
    except ImportError as error:
        assert "pip install 'irm-fast[" in str(error), error
for command in ("--help", "doctor"):  # not where the sources lie, which would be taken instead
    subprocess.run([sys.executable, "-m", "irm_fast", command], check=True, cwd=Path(sys.executable).parent)
print("the core works", "with the kernel" if with_kernel else "without a kernel")
