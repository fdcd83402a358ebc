"""Triton kernels and packed training on a real GPU, without the interpreter.

IRM_FAST_GPU_TESTS=1 pytest tests/kernels/test_gpu.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import irm_fast
from irm_fast.losses import baselines
from irm_fast.losses.pointwise import pointwise_loss
from irm_fast.models.computation import computing
from irm_fast.models.packed import packed_attention
from tests.conftest import ON_GPU
from tests.losses.loss_cases import make, options

pytestmark = pytest.mark.skipif(not ON_GPU, reason="needs a GPU and IRM_FAST_GPU_TESTS=1")
SHAPES = ((1, 64, 1), (777, 1000, 1), (3000, 4096, 2), (500, 8192, 1), (300, 16384, 3))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def to_gpu(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(to_gpu(part) for part in x)
    return x.detach().cuda().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def linear_inputs(n: int, width: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """hidden, reward weight and bias, propensity weight and bias, feedback."""
    generator = torch.Generator().manual_seed(n + width)
    hidden = torch.randn(n, width, generator=generator).to(dtype)
    leaves = [hidden, *(torch.randn(shape, generator=generator) / width**0.5 for shape in ((width,), (k, width)))]
    hidden, weight, propensity_weight = (x.requires_grad_() for x in leaves)
    bias, propensity_bias = torch.zeros((), requires_grad=True), torch.zeros(k, requires_grad=True)
    return hidden, weight, bias, propensity_weight, propensity_bias, make(n, k)[2]


def linear_loss(inputs: tuple[Tensor, ...], **settings: Any) -> Any:
    hidden, weight, bias, propensity_weight, propensity_bias, feedback = inputs
    heads = {"reward_bias": bias, "propensity_weight": propensity_weight, "propensity_bias": propensity_bias}
    return irm_fast.linear_implicit_rm_loss(hidden, weight, feedback, **heads, **settings)


def plain_loss(inputs: tuple[Tensor, ...], **settings: Any) -> Any:
    return irm_fast.implicit_rm_loss(*inputs, **settings)


def results(loss: Callable, inputs: tuple[Tensor, ...], **settings: Any) -> list[Tensor]:
    """Row losses, groups, and gradients, with upstream gradients that differ between rows."""
    rows, groups = loss(inputs, reduction="none", return_groups=True, **settings)
    upstream = torch.linspace(0.5, 1.5, len(rows)).to(rows)
    leaves = [x for x in inputs if x.requires_grad]
    mean = torch.autograd.grad(loss(inputs, **settings), leaves)
    return [rows.detach(), groups, *torch.autograd.grad(rows, leaves, upstream), *mean]


def compare(loss: Callable, inputs: tuple[Tensor, ...], dtype: torch.dtype, **settings: Any) -> None:
    got = results(loss, to_gpu(inputs), **{name: to_gpu(x) for name, x in settings.items()})
    want = results(loss, inputs, backend="reference", **settings)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for a, b in zip(got, want, strict=True):
        assert a.is_cuda and a.dtype == b.dtype
        largest = b.double().abs().max()
        assert (a.double().cpu() - b.double()).abs().max() <= tolerance * largest + 1e-9, (a, b)


def evidence(n: int, k: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.rand(n, generator=generator)
    weight[::7] = 0
    return {
        **options(k),
        "preference": torch.randint(-1, 2, (n,), generator=generator),
        "weight": weight,
        "stratification": (torch.randn(n, generator=generator), torch.randn(n, k, generator=generator)),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("everything", (False, True))
@pytest.mark.parametrize(("n", "k"), ((1, 1), (1000, 1), (70_001, 3)))
def test_the_loss_is_that_of_the_reference(n: int, k: int, everything: bool, dtype: str) -> None:
    s, t, f = make(n, k)
    s, t = (x.to(DTYPES[dtype]).requires_grad_() for x in (s, t))
    compare(plain_loss, (s, t, f), DTYPES[dtype], **(evidence(n, k) if everything else {}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("everything", (False, True))
@pytest.mark.parametrize(("n", "width", "k"), SHAPES)
def test_the_linear_loss_is_that_of_the_reference(n: int, width: int, k: int, everything: bool, dtype: str) -> None:
    inputs = linear_inputs(n, width, k, DTYPES[dtype])
    compare(linear_loss, inputs, DTYPES[dtype], **(evidence(n, k) if everything else {}))


def pointwise_inputs(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and weights of either sign; every seventh row has none."""
    generator = torch.Generator().manual_seed(n)
    s, *weights = (torch.randn(n, generator=generator) for _ in range(3))
    for weight in weights:
        weight[::7] = 0
    return (3 * s).to(dtype).requires_grad_(), *weights


def pointwise(inputs: tuple[Tensor, ...], **settings: Any) -> Tensor:
    return pointwise_loss(*inputs, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", (1, 1000, 70_001))
def test_the_pointwise_loss_is_that_of_the_reference(n: int, dtype: str) -> None:
    inputs = pointwise_inputs(n + 1, DTYPES[dtype])

    def evaluate(inputs: tuple[Tensor, ...], **settings: Any) -> list[Tensor]:
        rows, mean = pointwise(inputs, reduction="none", **settings), pointwise(inputs, **settings)
        upstream = torch.linspace(0.5, 1.5, len(rows)).to(rows)
        grads = torch.autograd.grad(rows, inputs[0], upstream), torch.autograd.grad(mean, inputs[0])
        return [rows.detach(), mean.detach(), *grads[0], *grads[1]]

    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[DTYPES[dtype]]
    for got, want in zip(evaluate(to_gpu(inputs)), evaluate(inputs, backend="reference"), strict=True):
        assert got.is_cuda and got.dtype == want.dtype
        torch.testing.assert_close(got.cpu().double(), want.double(), rtol=tolerance, atol=3e-6)


def step_of(loss: Callable, inputs: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
    leaves = [x for x in inputs if x.requires_grad]

    def step() -> tuple[Tensor, ...]:
        value = loss(inputs)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return step


def one_signal() -> tuple[Tensor, Tensor, Tensor]:
    """Both logits and feedback, (N,) each."""
    s, t, feedback = make(5000, 1)
    return s.requires_grad_(), t.squeeze(1).requires_grad_(), feedback.squeeze(1)


def constants() -> tuple[Tensor, Tensor, Tensor]:
    """Reward logits (N,), constant propensity logits (K,), and feedback of floating point (N, K), NaN where missing."""
    s, _, feedback = make(5000, 2)
    return s.requires_grad_(), torch.zeros(2, requires_grad=True), torch.where(feedback == -1, torch.nan, feedback)


def trainer_loss(inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The loss of a step as `transformers.Trainer` asks for it, with its count of labels, which is on the device."""
    s, t, labels = inputs
    outputs = {"logits": s[:, None], "propensity_logits": t}
    return irm_fast.hf.compute_loss_func()(outputs, labels, num_items_in_batch=labels.ne(-100).sum())


CASES = {
    "constants": lambda: (plain_loss, constants()),
    "trainer": lambda: (trainer_loss, constants()),
    "loss": lambda: (plain_loss, (*(x.requires_grad_() for x in make(5000, 2)[:2]), make(5000, 2)[2])),
    "linear": lambda: (linear_loss, linear_inputs(5000, 1024, 2)),
    "pointwise": lambda: (pointwise, pointwise_inputs(5000)),
    "nnpu": lambda: (lambda x: baselines.nnpu_loss(*x, class_prior=0.6), one_signal()[::2]),
    "ips": lambda: (lambda x: baselines.ips_loss(x[0], 0.4, x[1]), one_signal()[::2]),
    "sar_em": lambda: (lambda x: baselines.sar_em_loss(*x), one_signal()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_whole_step_is_captured_in_a_cuda_graph(case: str) -> None:
    loss, inputs = CASES[case]()
    inputs = to_gpu(inputs)
    step = step_of(loss, inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        inputs[0].mul_(0.5)  # the graph must read its inputs anew
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, step(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_the_device(case: str) -> None:
    loss, inputs = CASES[case]()
    step = step_of(loss, to_gpu(inputs))
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", CASES)
def test_the_same_input_gives_the_same_bits(case: str) -> None:
    loss, inputs = CASES[case]()
    step = step_of(loss, to_gpu(inputs))
    first = step()
    for _ in range(99):
        for got, want in zip(step(), first, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_as_a_whole(case: str) -> None:
    loss, inputs = CASES[case]()
    inputs = to_gpu(inputs)
    want, got = step_of(loss, inputs)(), step_of(torch.compile(loss, fullgraph=True), inputs)()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_memory_does_not_grow_with_the_hidden_states() -> None:
    """Between forward and backward only the gradients of the logits and of the heads are held."""
    hidden, *rest = to_gpu(linear_inputs(50_000, 1024, 1))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = linear_loss((hidden, *rest))
    peak = torch.cuda.max_memory_allocated() - before
    assert loss.requires_grad
    assert peak < hidden.numel() * hidden.element_size() / 10


FAMILIES_ON_GPU = ("llama", "qwen3", "mistral", "gemma")


def states_of(model: Any, rows: list[dict], packed: bool, precision: torch.dtype) -> Tensor:
    from irm_fast.evaluation.scoring import logit_inputs
    from irm_fast.models.batches import Collator, stack_rows

    batch = {name: to_gpu(x) for name, x in Collator(0, packed=packed)(stack_rows(rows)).items()}
    del batch["counts"]
    with torch.no_grad(), computing(model, None if precision == torch.float32 else precision):
        return model.pool(**logit_inputs(batch))


@pytest.mark.parametrize("family", FAMILIES_ON_GPU)
def test_packed_states_are_as_exact_as_padded_ones(family: str) -> None:
    """By torch's flash kernels, and by every flash-attn package that is installed."""
    from irm_fast.models.attention import PACKED, obstacle
    from tests.models.test_attention import FAMILIES, make_model, make_rows

    model, rows = make_model(FAMILIES[family]()).cuda(), make_rows()
    exact = states_of(model, rows, False, torch.float32)
    padded = (states_of(model, rows, False, torch.bfloat16) - exact).abs().max()
    device = torch.device("cuda", torch.cuda.current_device())
    tried = [name for name in PACKED if obstacle(name, model.classifier, device, torch.bfloat16) is None]
    assert "varlen" in tried
    for name in tried:
        with packed_attention(model, name, dtype=torch.bfloat16):
            packed = states_of(model, rows, True, torch.bfloat16)
            others = [{**row, "input_ids": row["input_ids"][::-1]} for row in rows[:-1]] + rows[-1:]
            changed = states_of(model, others, True, torch.bfloat16)
        assert (packed - exact).abs().max() <= 2 * padded
        assert torch.equal(changed[-1], packed[-1])  # no row sees another


@pytest.mark.parametrize("family", ("llama", "mistral"))
def test_packed_gradients_are_as_exact_as_padded_ones(family: str) -> None:
    from irm_fast.models.batches import Collator, stack_rows
    from tests.models.test_attention import FAMILIES, make_model, make_rows

    model, rows = make_model(FAMILIES[family]()).cuda(), make_rows()

    def gradient(packed: bool, precision: torch.dtype) -> Tensor:
        batch = {
            name: to_gpu(x)
            for name, x in Collator(0, packed=packed)(stack_rows(rows)).items()
            if name not in ("row", "counts")
        }
        model.zero_grad()
        with computing(model, None if precision == torch.float32 else precision):
            model(**batch).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact = gradient(False, torch.float32)
    assert exact.abs().max() > 0.1
    padded = (gradient(False, torch.bfloat16) - exact).norm()
    with packed_attention(model, "varlen", dtype=torch.bfloat16):
        assert (gradient(True, torch.bfloat16) - exact).norm() <= 2 * padded


def test_a_packed_pass_waits_for_nothing() -> None:
    """From the second pass on; transformers would look at the position ids, were a mask made for this attention."""
    from tests.models.test_attention import FAMILIES, make_model, make_rows

    model, rows = make_model(FAMILIES["mistral"]()).cuda(), make_rows()
    from irm_fast.models.batches import Collator, stack_rows

    batch = Collator(0, packed=True)(stack_rows(rows))
    batch = {name: to_gpu(x) for name, x in batch.items() if name not in ("row", "counts")}
    with packed_attention(model, "varlen", dtype=torch.bfloat16), computing(model, torch.bfloat16):
        model(**batch).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(**batch).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_training_on_a_gpu(make_log: Any, make_config: Any) -> None:
    """The whole loop, packed by a token budget in bfloat16, with its report; float32 is padded."""
    from irm_fast.training.run import train_log

    result = train_log(make_log(80), make_config(batch_size=None, token_budget=600, precision="bfloat16"))
    assert result.throughput["non_padding"] == 1
    assert result.throughput["peak_memory_gb"] > 0
    exact = train_log(make_log(80), make_config("exact", batch_size=None, token_budget=600))
    assert exact.throughput["non_padding"] < 1
    assert result.metrics["nll"] == pytest.approx(exact.metrics["nll"], rel=0.02)
    with pytest.raises(ValueError, match="precision"):
        train_log(make_log(80), make_config("forced", attn="varlen"))


def test_scoring_on_a_gpu(tiny_model: str, make_log: Any, tmp_path: Any) -> None:
    """By default packed and in bfloat16; in float32 on request."""
    from irm_fast.data.signals import RewardSpec
    from irm_fast.evaluation.scoring import load, score
    from irm_fast.models.reward_model import ImplicitRewardModel

    model = ImplicitRewardModel.from_backbone(tiny_model, RewardSpec("constant"))
    with torch.no_grad():
        model.classifier.score.weight.normal_()
    model.save(tmp_path)
    conversations = make_log(80).messages
    expected = score(model, conversations)  # on the CPU
    fast, exact = load(tmp_path), load(tmp_path, precision="float32")
    with packed_attention(fast, dtype=fast.classifier.dtype):
        assert (fast.device.type, fast.classifier.dtype, fast.packed) == ("cuda", torch.bfloat16, True)
    assert abs(score(exact, conversations) - expected).max() < 1e-3 * expected.std()
    assert 0 < abs(score(fast, conversations) - expected).max() < 0.2 * expected.std()
