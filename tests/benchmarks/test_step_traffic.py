"""The memory traffic of a training step, counted on tensors without memory: what fused kernels are for."""

import pytest

from benchmarks.step_traffic import step_traffic


def test_fused_bfloat16_layers_move_little():
    """Qwen3-0.6B, 16,384 tokens: without fusing three times as much, under autocast four times."""
    pytest.importorskip("liger_kernel")
    fused, plain = step_traffic(how="liger"), step_traffic(how="bfloat16")
    assert fused.total <= 150
    assert fused.wide == 0  # no float32 tensor of tokens times width in the layers
    assert plain.wide > 0  # norms compute in float32
    assert plain.total > 3 * fused.total
    print(f"elementwise traffic of a step: {plain.total:.0f} GB, fused {fused.total:.0f} GB")


def test_autocast_keeps_the_residual_stream_in_float32():
    plain, before = step_traffic(how="bfloat16"), step_traffic(how="autocast")
    assert before.total > 1.2 * plain.total
    assert before.wide > plain.wide
