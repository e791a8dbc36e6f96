"""Call a function that autograd does not see, with a gradient from an estimator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pytree_core import tree_flatten, tree_unflatten
from torch import Tensor
from torch._compile import _disable_dynamo

from diffopt_zeroorder._method import Method
from diffopt_zeroorder._noise import Sampler, Tensors, noise_like
from diffopt_zeroorder._shaping import Shaping

# A black box runs NumPy or branches on values, so `torch.compile` breaks its graph around it. This
# is `torch.compiler.disable`, but for importing Dynamo, a second or more, when first called.
outside_graphs = _disable_dynamo

Evaluate = Callable[[Tensors], Tensors]
Mapping = Callable[[Evaluate, Iterable[Tensors]], Iterator[Tensors]]

# NOTE [two functions]
# `BlackBox` gives the value and `Estimate` its vector-Jacobian product. The second is a function of
# its own, for two reasons. Its own derivative is then a question that is asked, and refused, where
# autograd would otherwise answer zero. And both, being called with their tensors as arguments, get
# plain tensors from every transform of `torch.func`: the user's function may run NumPy on them, and
# runs without a graph, as autograd records nothing in the `forward` of a function.


@dataclass
class Call:
    """One call of the user's function, with what is needed to repeat it elsewhere.

    Attributes:
        function: Takes the flat tensors of all arguments.
        chosen: The positions among these of the tensors to differentiate in.
        method: The estimator.
        sampler: Where its directions come from.
        sigma: Its step.
        num_samples: How many directions.
        mapping: Yields the function's values at many points: `one_by_one` or `all_at_once`.
        shaping: What to make of all values before they are compared, if anything.
        spec: The structure of the value, known once the function has been called.
    """

    function: Callable[[Sequence[Tensor]], Any]
    chosen: tuple[int, ...]
    method: Method
    sampler: Sampler
    sigma: float
    num_samples: int
    mapping: Mapping
    shaping: Shaping | None
    spec: Any = field(default=None, init=False)

    def value(self, tensors: Sequence[Tensor]) -> Tensors:
        """Evaluate the function on detached tensors, to the leaves of its value."""
        (value,) = self.values(tensors, [self.start(tensors)])
        return value

    def start(self, tensors: Sequence[Tensor]) -> Tensors:
        """Return the chosen tensors."""
        return tuple(tensors[i].detach() for i in self.chosen)

    def values(self, tensors: Sequence[Tensor], points: Iterable[Tensors]) -> Iterator[Tensors]:
        """Yield the leaves of the function's value at each of the points."""
        moved = [tensor.detach() for tensor in tensors]

        def evaluate(point: Tensors) -> Tensors:
            for i, leaf in zip(self.chosen, point, strict=True):
                moved[i] = leaf
            leaves, self.spec = tree_flatten(self.function(moved))
            return tuple(as_tensor(leaf, point[0]) for leaf in leaves)

        return self.mapping(evaluate, points)

    def gradient(self, cotangents: Tensors, seed: Tensor, tensors: Tensors) -> Tensors:
        """Estimate the gradient of ``<cotangents, value>`` in the chosen tensors."""

        def values(points: Iterable[Tensors]) -> Iterator[Tensor]:
            found = (inner(cotangents, value) for value in self.values(tensors, points))
            return iter(self.shaping(torch.stack(tuple(found)))) if self.shaping else found

        x = self.start(tensors)
        noise = noise_like(x, self.sampler, seed)
        return self.method.gradient(values, x, noise, self.sigma, self.num_samples)


def one_by_one(evaluate: Evaluate, points: Iterable[Tensors]) -> Iterator[Tensors]:
    """Evaluate at each point when its value is asked for."""
    return (evaluate(point) for point in points)


def all_at_once(evaluate: Evaluate, points: Iterable[Tensors]) -> Iterator[Tensors]:
    """Evaluate at all points stacked along a new first dimension, which the value has too."""
    stacked = tuple(torch.stack(leaves) for leaves in zip(*points, strict=True))
    size = len(stacked[0])
    values = evaluate(stacked)
    for value in values:
        if value.shape[:1] != (size,):
            raise ValueError(
                f"With `vectorized=True` the function is called with {size} points stacked along "
                f"a new first dimension, and must return a value for each: tensors of the shape "
                f"({size}, ...), got {tuple(value.shape)}."
            )
    return (tuple(value[i] for value in values) for i in range(size))


def as_tensor(leaf: Any, like: Tensor) -> Tensor:
    """Turn a leaf of the user's value into a floating-point tensor, `like` where it has no type."""
    if isinstance(leaf, Tensor):
        return leaf if leaf.is_floating_point() else leaf.to(like.dtype)
    if isinstance(leaf, (bool, int, float)):
        return torch.tensor(leaf, dtype=like.dtype, device=like.device)
    try:
        array = torch.as_tensor(leaf, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            "The function must return tensors, arrays or numbers, in any tree; got a leaf of "
            f"type {type(leaf).__name__}."
        ) from None
    return array if array.is_floating_point() else array.to(like.dtype)


def inner(cotangents: Tensors, values: Tensors) -> Tensor:
    """Return the inner product of what came back with where it came from, in float32 at least."""
    total: Any = 0.0
    for cotangent, value in zip(cotangents, values, strict=True):
        if cotangent.shape != value.shape:
            raise ValueError(
                "The function must return the same shapes wherever it is called; it returned "
                f"{tuple(cotangent.shape)} once and {tuple(value.shape)} now."
            )
        dtype = torch.promote_types(value.dtype, torch.float32)
        total = total + (cotangent.to(dtype) * value.to(dtype)).sum()
    if not torch.isfinite(total):
        raise ValueError(
            f"The function gave a value with NaN or infinity ({total.item()}) at a perturbed "
            "point, from which no gradient can be estimated. Make `sigma` smaller, or let the "
            "function return a large finite number there."
        )
    return total


class BlackBox(torch.autograd.Function):
    """The value of a call; its gradient is `Estimate`."""

    @staticmethod
    def forward(call: Call, seed: Tensor, *tensors: Tensor) -> Tensors:
        return call.value(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @outside_graphs
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        call, (seed, *tensors) = ctx.call, ctx.saved_tensors
        estimates = Estimate.apply(call, len(cotangents), seed, *cotangents, *tensors)
        gradients: list[Tensor | None] = [None] * (2 + len(tensors))
        for i, estimate in zip(call.chosen, estimates, strict=True):
            gradients[2 + i] = estimate
        return tuple(gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            "`zero_order` estimates gradients in reverse mode only; forward mode (`jvp`, "
            "`jacfwd`, `hessian`) is not available. Use `torch.func.grad` or `backward`."
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return loop(BlackBox, info.batch_size, in_dims, args)


class Estimate(torch.autograd.Function):
    """The estimated vector-Jacobian product of a call, which has no derivative itself."""

    @staticmethod
    def forward(call: Call, count: int, seed: Tensor, *tensors: Tensor) -> Tensors:
        return call.gradient(tensors[:count], seed, tensors[count:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise NotImplementedError(
            "The gradient that `zero_order` estimates cannot be differentiated again: it is made "
            "of values at random points, and the derivative autograd could give is not that of "
            "the smoothed function. Estimate the outer derivative from values too, by decorating "
            "the function that takes this gradient with `zero_order`, or detach this gradient."
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return Estimate.backward(ctx)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return loop(Estimate, info.batch_size, in_dims, args)


def loop(
    function: Any, batch_size: int, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[Tensors, tuple[int, ...]]:
    """Apply `function` to each example of a batch: a black box takes one at a time."""
    results = []
    for i in range(batch_size):
        example = [
            arg if dim is None else arg.select(dim, i)
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        results.append(function.apply(*example))
    stacked = tuple(torch.stack(leaves) for leaves in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def call_black_box(call: Call, seed: Tensor, tensors: Sequence[Tensor]) -> Any:
    """Return the value of a call as the tree that the function returned."""
    leaves = BlackBox.apply(call, seed, *tensors)
    return tree_unflatten(call.spec, list(leaves))
