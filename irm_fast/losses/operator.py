"""One registration for all operations: autograd for eager calls, a custom operator under torch.compile.

Eager calls go past the dispatcher, which would cost them more than the kernel at small batches; Dynamo cannot look
into the kernels and needs the operator. Gradients are computed in the forward pass and scaled, never in place, in
backward. Backends hand float32 gradients over; they are rounded to the dtype of the logits after the upstream gradient
has been applied, so that a loss scale can lift small ones above float16's floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)
_SCHEMA = {  # annotation of a field: its type in the schema of an operator
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    tuple[float, ...]: "float[]",
    float | None: "float?",
    bool: "bool",
    str | None: "str?",
}


def scaled(grad: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient times the upstream gradient, () or (N,), rounded once."""
    if upstream.dim() == 1 and grad.dim() == 2:
        upstream = upstream.unsqueeze(-1)
    grad = grad * upstream
    return grad if grad.dtype == dtype else grad.to(dtype)


def mean_over(reduction: str, normalizer: float | Tensor | None) -> tuple[float | None, float | Tensor | None]:
    """The number that the kernel multiplies by, None for 1/N, and what the loss is divided by afterwards.

    A normalizer on a device stays there, never read. torch.compile would compile anew for every value that it sees
    handed over to the kernel: it gets neither 1/N nor a normalizer.
    """
    if reduction != "mean":
        return 1.0, None
    if isinstance(normalizer, Tensor) or (normalizer is not None and torch.compiler.is_compiling()):
        return 1.0, normalizer
    return None if normalizer is None else 1.0 / normalizer, None


def divided(loss: Tensor, by: float | Tensor | None) -> Tensor:
    """The loss divided by what `mean_over` left, if anything."""
    if by is None:
        return loss
    return loss / (by.to(loss.dtype) if isinstance(by, Tensor) else by)


def _function(function: Callable[..., Tensor], _: Any, *arguments: Any) -> Tensor:
    """In eager mode a kernel of the backward pass is called as it is."""
    return function(*arguments)


def _operator(_: Any, operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """In a graph of torch.compile it is called as an operator."""
    return operator(*arguments)


def _transformable(function: Callable[..., Tensor], _: Any, *arguments: Any) -> Tensor:
    """Under torch.func it needs a function that unwraps its tensors."""
    return _Unwrapped.apply(function, *arguments)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


class _Unwrapped(torch.autograd.Function):
    """A kernel of the backward pass under `torch.func`; it has no derivative."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return function(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError("the losses have closed-form gradients and cannot be differentiated twice")


class Operation:
    """A loss of some tensors, with closed-form gradients.

    Calling it with the input tensors and the options gives the loss and the groups (or None).

    Args:
        name: The name of the operator, in the namespace `irm_fast`.
        loss: The name of the public function, for errors.
        inputs: Names of the input tensors that may carry gradients; a name that ends in "?" may be None.
        options: The NamedTuple type of everything else.
        run: Called as `run(*inputs, options, need)`, where `need` has one bool an input: is its gradient wanted? It
            returns the loss, the groups, and the tensors that backward reads, each None where not needed.
        fake: The same on shapes alone: tensors without data, empty where `run` gives None.
        results: The number of tensors that `run` returns.
        gradients: Called as `gradients(ctx, upstream)`; returns the gradient of every input. `ctx` has `saved_tensors`
            and `needs_input_grad` as in torch, `dtypes` of the inputs, `backend` by name, and
            `call(function, operator, *arguments)`, by which it calls a kernel of its own.
        keep: Called as `keep(inputs, options, need, saved)`; returns the tensors that backward reads, where these are
            not what `run` returned.
    """

    def __init__(
        self,
        name: str,
        *,
        loss: str,
        inputs: Sequence[str],
        options: type,
        run: Callable[..., Sequence[Tensor | None]],
        fake: Callable[..., Sequence[Tensor]],
        results: int,
        gradients: Callable[[Any, Tensor], Sequence[Tensor | None]],
        keep: Callable[..., Sequence[Tensor | None]] | None = None,
    ) -> None:
        self.loss, self.run, self.gradients, self.keep = loss, run, gradients, keep
        self.count, self.nothing = len(inputs), (False,) * len(inputs)
        self.operator = self._register(name, inputs, options, fake, results)
        self.eager = self._eager_function()
        self.transformed = self._transformable_function()

    def __call__(self, *inputs: Tensor | None, options: Any) -> tuple[Tensor, Tensor | None]:
        need = self.nothing
        if torch.is_grad_enabled():
            need = tuple([x is not None and x.requires_grad for x in inputs])
        if torch.compiler.is_compiling():
            loss, groups, *_ = self.operator(*inputs, *options, *need)
            return loss, groups.detach()
        if torch._C._are_functorch_transforms_active():
            loss, groups, *_ = self.transformed.apply(*inputs, options, need)
            return loss, groups
        if True in need:
            return self.eager.apply(*inputs, options, need)  # type: ignore[no-any-return]
        loss, groups, *_ = self.run(*inputs, options, need)
        return loss, groups  # type: ignore[return-value]

    def remember(
        self,
        ctx: Any,
        inputs: Sequence[Tensor | None],
        options: Any,
        need: Sequence[bool],
        saved: Sequence[Tensor | None],
        call: Callable[..., Tensor],
    ) -> None:
        """Leave on `ctx` what `gradients` reads."""
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        ctx.backend, ctx.call = options.backend, call
        ctx.save_for_backward(*(saved if self.keep is None else self.keep(inputs, options, need, saved)))

    def refuse_second_derivative(self) -> None:
        raise RuntimeError(
            f"{self.loss} has closed-form gradients and cannot be differentiated twice (create_graph=True); "
            f"irm_fast.reference.{self.loss} can"
        )

    def _eager_function(self) -> Any:
        """The autograd function of ordinary calls: what backward reads is never an output, which saves time."""
        operation, run, gradients = self, self.run, self.gradients

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *arguments: Any) -> Any:
                *inputs, options, need = arguments
                loss, groups, *saved = run(*inputs, options, need)
                operation.remember(ctx, inputs, options, need, saved, _function)
                if groups is not None:
                    ctx.mark_non_differentiable(groups)
                return loss, groups

            @staticmethod
            def backward(ctx: Any, upstream: Tensor, _: Any) -> Any:
                if torch.is_grad_enabled():  # create_graph=True: a second derivative must not vanish in silence
                    operation.refuse_second_derivative()
                return *gradients(ctx, upstream), None, None

        return Eager

    def _transformable_function(self) -> Any:
        """The autograd function under `torch.func`, whose transforms record every backward pass.

        What backward reads has to be an output there. Whoever differentiates a gradient comes back by these outputs.
        """
        operation = self

        class Transformable(torch.autograd.Function):
            @staticmethod
            def forward(*arguments: Any) -> Any:
                *inputs, options, need = arguments
                return tuple(operation.run(*inputs, options, need))

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                *tensors, options, need = inputs
                if output[1] is not None:
                    ctx.mark_non_differentiable(output[1])
                ctx.set_materialize_grads(False)
                operation.remember(ctx, tensors, options, need, output[2:], _transformable)

            @staticmethod
            def backward(ctx: Any, upstream: Tensor | None, _: Any, *second: Tensor | None) -> Any:
                if any(x is not None for x in second):
                    operation.refuse_second_derivative()
                gradients = [None] * operation.count if upstream is None else operation.gradients(ctx, upstream)
                return *gradients, None, None

            @staticmethod
            def vmap(*_: Any) -> None:
                raise RuntimeError(
                    f"{operation.loss} does not support torch.func.vmap: it takes a whole batch in one launch. Call it "
                    f'on the whole batch with reduction="none", or use irm_fast.reference.{operation.loss}'
                )

        return Transformable

    def _register(
        self, name: str, inputs: Sequence[str], options: type, fake: Callable[..., Sequence[Tensor]], results: int
    ) -> Any:
        """The operator of `torch.compile`: inputs, options, and one bool an input; tensors out, empty for None."""
        kinds = get_type_hints(options)
        fields = [f"{_SCHEMA[kinds[field]]} {field}" for field in options._fields]  # type: ignore[attr-defined]
        tensors = [f"Tensor{'?' if x.endswith('?') else ''} {x.rstrip('?')}" for x in inputs]
        needs = [f"bool need_{x.rstrip('?')}" for x in inputs]
        first, last = len(inputs), len(inputs) + len(fields)

        def parts(arguments: Sequence[Any]) -> tuple[Sequence[Tensor | None], Any, Sequence[bool]]:
            values = [tuple(x) if isinstance(x, list) else x for x in arguments[first:last]]
            return arguments[:first], options(*values), arguments[last:]

        def real(*arguments: Any) -> Any:
            tensors, given, need = parts(arguments)
            loss, *results = self.run(*tensors, given, need)
            return loss, *(loss.new_empty(0) if x is None else x for x in results)  # type: ignore[union-attr]

        def on_shapes(*arguments: Any) -> Any:
            tensors, given, need = parts(arguments)
            return tuple(fake(*tensors, given, need))

        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            tensors, given, need = parts(inputs)
            self.remember(ctx, tensors, given, need, output[2:], _operator)

        def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
            if torch.is_grad_enabled():
                self.refuse_second_derivative()
            return *self.gradients(ctx, upstream), *[None] * (len(fields) + len(needs))

        schema = f"({', '.join([*tensors, *fields, *needs])}) -> ({', '.join(['Tensor'] * results)})"
        operator = torch.library.custom_op(f"irm_fast::{name}", real, mutates_args=(), schema=schema)
        operator.register_fake(on_shapes)
        operator.register_autograd(backward, setup_context=setup_context)
        return operator
