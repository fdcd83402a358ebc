"""The backbone computes in bfloat16 while its parameters stay float32; activations may be computed again."""

import copy
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from irm_fast.data.signals import RewardSpec
from irm_fast.models.backbone import load_classifier
from irm_fast.models.computation import computing
from irm_fast.models.packed import two_rows
from irm_fast.models.reward_model import ImplicitRewardModel

SPEC = RewardSpec("hidden", ("copy",), (1,), (0.0,))
FEEDBACK = torch.tensor([[1], [0]], dtype=torch.int8)


@pytest.fixture
def model(tiny_model) -> ImplicitRewardModel:
    torch.manual_seed(0)
    return ImplicitRewardModel.from_backbone(tiny_model, SPEC).train()


class Products(TorchDispatchMode):
    """Keeps the types of what is multiplied, and counts the products."""

    def __init__(self):
        super().__init__()
        self.count, self.dtypes = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::mm", "aten::addmm"):
            self.count += 1
            self.dtypes |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def step(model: ImplicitRewardModel) -> tuple[torch.Tensor, Products]:
    """The gradient of all parameters, flat, and the products of the step."""
    model.zero_grad()
    with Products() as products:
        model(**two_rows(model, packed=False), feedback=FEEDBACK).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), products


def test_weights_are_used_in_bfloat16_and_stay_float32(model):
    exact, _ = step(model)
    with computing(model, torch.bfloat16):
        rounded, products = step(model)
        states = model.pool(**two_rows(model, packed=False))
    assert products.dtypes == {torch.bfloat16}
    assert states.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.05
    assert torch.equal(step(model)[0], exact)  # outside the context all is as before


def test_heads_see_weights_that_bfloat16_cannot_hold(model):
    torch.nn.init.constant_(model.heads.reward.weight, 1 + 2**-12)
    with computing(model, torch.bfloat16), torch.no_grad():
        batch = two_rows(model, packed=False)
        reward = model("logits", **batch).reward
        assert torch.allclose(reward, model.pool(**batch).sum(1) * (1 + 2**-12), rtol=1e-6, atol=1e-6)


def test_activations_are_computed_again(model):
    """All of them, or those alone that are cheap."""
    with computing(model, torch.bfloat16):
        gradient, products = step(model)
        held = bytes_held(model)
    with computing(model, torch.bfloat16, recompute="full"):
        again, more = step(model)
        least = bytes_held(model)
    with computing(model, torch.bfloat16, recompute="selective"):
        in_part, as_many = step(model)
    assert torch.equal(again, gradient)
    assert torch.equal(in_part, gradient)
    layers = 2 * 7  # products of their forward pass
    assert products.count + layers - 2 <= more.count <= products.count + layers  # the last ones may not be needed
    assert as_many.count == products.count
    assert least < held / 2


def test_layers_that_are_alike_are_compiled_once(model, monkeypatch):
    """Also with copies for weights, which are other tensors in each pass, and for other lengths."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    with computing(model, torch.bfloat16):
        gradient, _ = step(model)
    with computing(model, torch.bfloat16, compiled=True):
        assert torch.equal(compiled_gradient(model), gradient)
        assert counter.frame_count == 1  # of two layers
        compiled_gradient(model)
        assert counter.frame_count == 1
    with computing(model, torch.bfloat16, compiled=True, recompute="full"):
        assert torch.equal(compiled_gradient(model), gradient)


def compiled_gradient(model: ImplicitRewardModel) -> torch.Tensor:
    """As `step`, without the mode that counts: the compiler would leave code under it as it is."""
    model.zero_grad()
    model(**two_rows(model, packed=False), feedback=FEEDBACK).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def bytes_held(model: ImplicitRewardModel) -> int:
    """The bytes of all that a forward pass keeps for the backward pass, but for parameters."""
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**two_rows(model, packed=False), feedback=FEEDBACK)
    return sum(storages.values())


def test_a_copy_computes_with_its_own_weights(model):
    with computing(model, torch.bfloat16):
        before, _ = step(model)
        average = copy.deepcopy(model)
        for parameter in average.parameters():
            parameter.data.mul_(2)
        assert torch.equal(step(model)[0], before)
        assert not torch.equal(step(average)[0], before)


def test_an_error_leaves_the_masters(model):
    before = dict(model.named_parameters())
    with computing(model, torch.bfloat16):
        with pytest.raises(IndexError):
            model.backbone(input_ids=torch.tensor([[10**6]]))
        after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())


def test_a_model_without_its_weights(tiny_model, tmp_path):
    """Its files of weights are not looked at; all that is no parameter is there."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    whole = load_classifier(str(folder), num_labels=1)
    next(folder.glob("*.safetensors")).unlink()
    empty = load_classifier(str(folder), weights=False, num_labels=1)
    assert [name for name, _ in empty.named_parameters()] == [name for name, _ in whole.named_parameters()]
    assert {parameter.device.type for parameter in empty.parameters()} == {"cpu"}
    empty.load_state_dict(whole.state_dict())
    tokens = {"input_ids": torch.arange(3, 9)[None]}
    assert torch.equal(empty.eval()(**tokens).logits, whole.eval()(**tokens).logits)
