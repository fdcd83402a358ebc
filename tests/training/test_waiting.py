"""Nothing in the loop of training waits for the device: read off the source, since no device is at hand."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "irm_fast"
# Modules whose code runs in each step, and the functions in them that do not.
LOOP = {
    "training/trainer.py": {"evaluation_loop"},
    "training/callbacks.py": set(),
    "training/throughput.py": {"report"},
    "training/watch.py": {"_rows_of", "_weights_not_finite"},  # once a step is not finite, and before a checkpoint
    "training/progress.py": set(),
    "models/batches.py": set(),
    "models/computation.py": set(),
    "models/reward_model.py": {"save", "start_at"},
    "models/heads.py": {"standardise"},
    "models/varlen.py": {"_by_length", "_groups", "_window_mask"},  # on a CPU
    "losses/implicit.py": set(),
    "losses/linear.py": set(),
    "losses/operator.py": set(),
}

KNOWN = {
    "training/throughput.py": "torch.cuda.synchronize",  # around evaluations and reports alone
    "training/watch.py": "step.copied.synchronize",  # for a step that is over, while the device has the next one
}


def waits(tree: ast.AST, besides: set[str]) -> list[str]:
    """Calls that copy from a device, or pageable memory to it."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name in besides:
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            made = name in ("tensor", "as_tensor") and any(key.arg == "device" for key in node.keywords)
            if made or name in ("item", "tolist", "cpu", "numpy", "nonzero", "synchronize"):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        found += waits(node, besides)
    return found


@pytest.mark.parametrize("module", LOOP)
def test_the_loop_waits_for_nothing(module):
    found = waits(ast.parse((ROOT / module).read_text()), LOOP[module])
    known = [call for call in found if KNOWN.get(module, "nothing") in call]
    assert len(known) == (module in KNOWN)
    assert found == known


def test_waiting_is_seen():
    code = "def step(x):\n    y = torch.tensor(1.0, device=x.device)\n    return y.item()\n"
    assert len(waits(ast.parse(code), set())) == 2
    assert not waits(ast.parse(code), {"step"})
