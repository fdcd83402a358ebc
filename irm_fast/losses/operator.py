"""Registration of an operation with PyTorch: autograd for eager calls, a custom operator under torch.compile.

Eager calls bypass the dispatcher, which would cost more time than the kernel at small batches; Dynamo cannot trace the
kernels and needs the operator. Gradients of the logits are computed in the forward pass and multiplied by the upstream
gradient in backward, never in place; an upstream gradient of 1 on a CPU hands them out as they are. On GPUs they are
computed in backward, from the inputs. They are float32 until they are multiplied, and then rounded to the dtype of the
logits, so that a loss scale keeps small ones above the smallest float16 number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

from irm_fast.kernels.reference.scale import scale_gradients
from irm_fast.losses.dispatch import choose_backend

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


def scaled_gradients(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    """Multiply the gradients that an operation saved, one for each input, by the upstream gradient and round them once.

    In eager mode that is one call of the backend; graphs and function transforms see operations of PyTorch.

    Args:
        ctx: The context of the autograd function.
        upstream: The upstream gradient, () or (N,).

    Returns:
        The gradients in the dtypes of the inputs, None where not needed.
    """
    dtypes = ctx.dtypes
    grads = [x if needed else None for x, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)]
    scale: Callable[..., list[Tensor | None]] = scale_gradients
    kept = True
    if ctx.call is _function:
        scale = choose_backend(ctx.backend, upstream.device.type, torch.float64 in dtypes).scale_gradients
        kept = torch._C._autograd._get_current_graph_task_keep_graph()
    return scale(grads, upstream, dtypes, kept)


def mean_over(reduction: str, normalizer: float | Tensor | None) -> tuple[float | None, float | Tensor | None]:
    """Split the division of a mean between the kernel and PyTorch.

    A normalizer on a device stays there and is never read. torch.compile would compile anew for every number that is
    passed to the kernel: it passes neither 1/N nor a normalizer.

    Args:
        reduction: "mean", "sum" or "none".
        normalizer: The number that replaces N under "mean", or None.

    Returns:
        The number that the kernel multiplies by, None for 1/N; and what `divided` divides the loss by, or None.
    """
    if reduction != "mean":
        return 1.0, None
    if isinstance(normalizer, Tensor) or (normalizer is not None and torch.compiler.is_compiling()):
        return 1.0, normalizer
    return None if normalizer is None else 1.0 / normalizer, None


def divided(loss: Tensor, by: float | Tensor | None) -> Tensor:
    """Divide the loss by what `mean_over` left, if anything.

    Args:
        loss: The loss that the kernel returned.
        by: A number or a 0-dim tensor; None: the loss is returned as it is.
    """
    if by is None:
        return loss
    return loss / (by.to(loss.dtype) if isinstance(by, Tensor) else by)


def _function(function: Callable[..., Any], _: Any, *arguments: Any) -> Any:
    """Call a kernel of the backward pass directly, in eager mode."""
    return function(*arguments)


def _operator(_: Any, operator: Callable[..., Any], *arguments: Any) -> Any:
    """Call it as an operator, in a graph of torch.compile."""
    return operator(*arguments)


def _transformable(function: Callable[..., Any], _: Any, *arguments: Any) -> Any:
    """Call it through an autograd function that unwraps its tensors, under torch.func."""
    return _Unwrapped.apply(function, *arguments)  # type: ignore[no-untyped-call, unused-ignore]


class _Unwrapped(torch.autograd.Function):
    """A kernel of the backward pass under `torch.func`; it has no derivative: asking for one raises RuntimeError."""

    @staticmethod
    def forward(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError("the losses have closed-form gradients and cannot be differentiated twice")


class Operation:
    """A loss of some tensors, with closed-form gradients.

    Calling it with the input tensors and the options returns the loss and the groups (or None).

    Args:
        name: The name of the operator, in the namespace `irm_fast`.
        loss: The name of the public function, for errors.
        inputs: Names of the input tensors that may carry gradients; a name that ends in "?" may be None.
        options: The NamedTuple type of everything else.
        run: Called as `run(*inputs, options, need)`, where `need` has one bool for each input: whether its gradient is
            wanted. It returns the loss, the groups, and the tensors that backward reads, each None where not needed.
        fake: The same on shapes alone: tensors without data, empty where `run` gives None.
        results: The number of tensors that `run` returns.
        gradients: Called as `gradients(ctx, upstream)`; returns the gradient of every input. `ctx` has `saved_tensors`
            and `needs_input_grad` as in torch, `dtypes` of the inputs, `backend` by name, and
            `call(function, operator, *arguments)`, by which it calls a kernel of its own.
        keep: Called as `keep(ctx, inputs, options, need, saved)`; returns the tensors that backward reads, where these
            are not what `run` returned. What backward needs and is no tensor it sets as an attribute of `ctx`.

    Raises:
        RuntimeError: In backward if a second derivative is asked for, and under `torch.func.vmap`.
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
        call: Callable[..., Any],
    ) -> None:
        """Store on `ctx` what `gradients` reads in backward.

        Args:
            ctx: The context of the autograd function.
            inputs: The input tensors.
            options: The options.
            need: One bool for each input: whether its gradient is wanted.
            saved: The tensors for backward that `run` returned.
            call: The function that `gradients` calls kernels by: `_function`, `_operator` or `_transformable`.
        """
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        ctx.backend, ctx.call = options.backend, call
        ctx.save_for_backward(*(saved if self.keep is None else self.keep(ctx, inputs, options, need, saved)))

    def refuse_second_derivative(self) -> None:
        """Raise RuntimeError, which names the reference function that can be differentiated twice."""
        raise RuntimeError(
            f"{self.loss} has closed-form gradients and cannot be differentiated twice (create_graph=True); "
            f"irm_fast.reference.{self.loss} can"
        )

    def _eager_function(self) -> Any:
        """Make the autograd function of ordinary calls: what backward reads is never an output, which saves time."""
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
        """Make the autograd function for `torch.func`, whose transforms record every backward pass.

        What backward reads has to be an output there; a gradient that arrives there belongs to a second derivative.
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
        """Register the operator for `torch.compile`.

        It takes the inputs, the options, and one bool for each input, and returns tensors, empty for None.
        """
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
