"""Hypergradients whose derivatives of the two losses are compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal, NamedTuple, overload

import torch
from pytree_core import tree_leaves
from pytree_core.integrations.torch import register_with_dynamo
from torch import Tensor
from torch._functorch import config

from diffopt_implicit._arguments import without_graph
from diffopt_implicit._hypergradient import DEFAULT, HypergradientInfo, estimated
from diffopt_implicit._hypergradient_method import HypergradientMethod
from diffopt_implicit._inductor import inductor
from diffopt_implicit._inner_problem import InnerProblem, Loss, Products
from diffopt_implicit._kept_graph import fresh, pulled, symmetric
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._torch import Tensors, has_tangent, is_transforming, outside_graphs


class CompiledHypergradient:
    """`hypergradient` for two losses and a method, compiled; made by `compile_hypergradient`.

    Example:
        >>> from diffopt_implicit import OneStep, compile_hypergradient
        >>> loss = lambda w, lam: (w - lam).square().sum()
        >>> compile_hypergradient(loss, loss, OneStep(0.1))
        <CompiledHypergradient of <lambda>, <lambda> by OneStep(step_size=0.1)>
    """

    def __init__(
        self, inner_loss: Loss, outer_loss: Loss, method: HypergradientMethod, graphs: Graphs
    ) -> None:
        self._losses, self._method, self._graphs = (inner_loss, outer_loss), method, graphs
        self._seen = False

    def __repr__(self) -> str:
        inner, outer = (getattr(loss, "__name__", repr(loss)) for loss in self._losses)
        return f"<CompiledHypergradient of {inner}, {outer} by {self._method!r}>"

    @overload
    def __call__(
        self, params: Tree, hparams: Tree, *, init: Tree | None = None, info: Literal[False] = False
    ) -> Tree: ...

    @overload
    def __call__(
        self, params: Tree, hparams: Tree, *, init: Tree | None = None, info: Literal[True]
    ) -> tuple[Tree, HypergradientInfo]: ...

    @outside_graphs
    @torch.no_grad()
    def __call__(
        self, params: Tree, hparams: Tree, *, init: Tree | None = None, info: bool = False
    ) -> Tree | tuple[Tree, HypergradientInfo]:
        """Return the hypergradient, as `hypergradient` does.

        Args:
            params: The minimum of the inner loss.
            hparams: Any tree; its floating-point tensors are differentiated.
            init: An adjoint to start from.
            info: Return a `HypergradientInfo` too.

        Returns:
            A tree like `hparams`, or ``(gradient, info)``.

        Raises:
            NotImplementedError: Under transforms of `torch.func` and in forward mode.
            RuntimeError: If a loss cannot be compiled.
        """
        tensors = [leaf for leaf in tree_leaves((params, hparams)) if isinstance(leaf, Tensor)]
        if is_transforming() or any(map(has_tangent, tensors)):
            raise NotImplementedError(
                "A compiled hypergradient cannot be differentiated or mapped: use `hypergradient`."
            )
        params, hparams = without_graph(params), without_graph(hparams)
        eager = InnerProblem.at(*self._losses, params, hparams)
        if not self._seen:  # so that what is wrong with a loss is said in its own words
            for loss in self._losses:
                eager.slopes(loss, eager.params)
            self._seen = True
        problem = CompiledProblem(**vars(eager), graphs=self._graphs)
        with explained():
            return estimated(problem, self._method, init, info=info)


def compile_hypergradient(
    inner_loss: Loss,
    outer_loss: Loss,
    method: HypergradientMethod = DEFAULT,
    *,
    dynamic: bool | None = None,
    backend: str | Callable[..., Any] = "inductor",
) -> CompiledHypergradient:
    """Compile the derivatives that a hypergradient is made of, for one that is taken often.

    Three graphs: the gradients of the losses, the product with the inner loss's second derivative,
    which is taken in each iteration of the adjoint, and the product with its mixed derivative. What
    the second does not need to compute for each vector is computed once. The iterations themselves
    are not compiled, so their number does not matter for the seconds that compilation takes,
    in the first call and in those that show a new shape or dtype.

    Args:
        inner_loss: As of `hypergradient`. Tensors that it closes over may change between calls.
        outer_loss: As of `hypergradient`.
        method: As of `hypergradient`.
        dynamic: Whether sizes are variables of the graphs: ``None`` once a second size was met,
            ``True`` from the first on, ``False`` never, so that each size has its own graph.
        backend: Which compiler, as `torch.compile` has it.

    Returns:
        A function ``(params, hparams, *, init=None, info=False)`` that returns what
        `hypergradient` does. Its result has no graph: second derivatives are not compiled.

    Example:
        >>> import torch
        >>> from diffopt_implicit import compile_hypergradient
        >>> inner = lambda w, lam: (w - 3).square().sum() / 2 + lam * w.square().sum() / 2
        >>> outer = lambda w, lam: (w - 1).square().sum() / 2
        >>> gradient = compile_hypergradient(inner, outer, backend="eager")
        >>> gradient(torch.full((2,), 2.0), torch.tensor(0.5))
        tensor(-2.6667)
    """
    register_with_dynamo()
    functions = (inner_slope, both_slopes, mixed_product)
    graphs = Graphs(*(one_graph(f, dynamic=dynamic, backend=backend) for f in functions))
    return CompiledHypergradient(inner_loss, outer_loss, method, graphs)


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do when a loss cannot be compiled."""
    try:
        yield
    except Exception as error:
        from torch._dynamo.exc import TorchDynamoException  # slow to import, and there by now

        if not isinstance(error, TorchDynamoException):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"A loss cannot be compiled into one graph: {reason} Change what it calls, or take "
            "`hypergradient`, which does not compile."
        ) from error


class Graphs(NamedTuple):
    """The functions that are compiled."""

    slope: Callable[..., Tensors]
    slopes: Callable[..., tuple[Tensors, Tensors]]
    mixed: Callable[..., Tensors]


def one_graph(function: Any, *, dynamic: bool | None, backend: Any) -> Callable[..., Any]:
    """Compile a function into one graph, apart from what else was compiled of it."""
    # Dynamo keeps what it has compiled by code, and only so much for each: hence a copy.
    copy = FunctionType(function.__code__.replace(), function.__globals__)
    backend = inductor if backend == "inductor" else backend
    return torch.compile(copy, fullgraph=True, dynamic=dynamic, backend=backend)


def inner_slope(loss: Loss, params: Tree, hparams: Tree) -> Tensors:
    """Return the derivative of the inner loss in the parameters."""
    problem = InnerProblem.at(loss, loss, params, hparams)
    return problem.inner_slope(problem.params, problem.hparams)


def both_slopes(loss: Loss, params: Tree, hparams: Tree) -> tuple[Tensors, Tensors]:
    """Return the derivatives of a loss in parameters and hyperparameters."""
    problem = InnerProblem.at(loss, loss, params, hparams)
    return problem.slopes(loss, problem.params)


def mixed_product(loss: Loss, params: Tree, hparams: Tree, u: Tensors) -> Tensors:
    """Return ``B^T u``."""
    problem = InnerProblem.at(loss, loss, params, hparams)
    return problem.mixed_at(problem.params)(u)


@dataclass(frozen=True)
class CompiledProblem(InnerProblem):
    """An inner problem whose derivatives are compiled.

    Attributes:
        graphs: By these functions.
    """

    graphs: Graphs

    def slopes(self, loss: Loss, params: Tensors) -> tuple[Tensors, Tensors]:
        """Return the derivatives of a loss in parameters and hyperparameters."""
        return self.graphs.slopes(loss, self.tree(params), self.selection.args[0])

    def products(self) -> Products:
        """Return the products with second derivatives, each of which is linear in its vector."""
        x, (hparams,) = fresh(self.params), self.selection.args
        with torch.enable_grad(), kept_buffers():
            slope = self.graphs.slope(self.inner_loss, self.tree(x), hparams)

        def hessian(u: Tensors) -> Tensors:
            with kept_buffers():
                return pulled(slope, x, u)

        def one_by_one(u: Tensors) -> Tensors:
            return tuple(map(torch.stack, zip(*map(hessian, zip(*u, strict=True)), strict=True)))

        params = self.tree(self.params)
        return Products(
            symmetric(hessian, one_by_one),
            lambda u: self.graphs.mixed(self.inner_loss, params, hparams, u),
        )


def kept_buffers() -> AbstractContextManager[None]:
    """Let the derivative of what is compiled here be taken many times."""
    return config.patch(donated_buffer=False)  # type: ignore[no-any-return]
