"""Functions and their derivatives, each compiled once for all steps: inner gradients, above all."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffopt_explicit._gradient import Recorded, by_transform, transformed, with_nothing
from diffopt_explicit._inductor import inductor
from diffopt_explicit._node import Pulled, Work, compute
from diffopt_explicit._outside import Outside, differentiable_leaves
from diffopt_explicit._recomputed import Whole
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_flatten, tree_leaves, tree_unflatten


@dataclass(frozen=True)
class Compiled:
    """Compile inner steps, and their derivatives, each into one graph for all steps.

    In `unroll` that is the whole step, optimizer and all; in inner loops over modules it is the
    gradient of the loss. Of a step nothing is kept but what it began with, as `Recomputed` does;
    its second graph pulls cotangents back through it. They are compiled at the first step, for
    the code of the loss and the kinds of transforms: another loss of the same code, or other
    hyperparameters, are not compiled again. Compilation takes seconds to a minute, whatever the
    number of steps, and is read from torch's cache on disk (``TORCHINDUCTOR_CACHE_DIR``) when the
    program is run again.

    What the loss depends on must be passed to it, by `meta_params` or `batches`: tensors that
    require grad and that it closes over are refused. A parameter that the loss does not depend on
    gets a gradient of zero. The gradient of the loss alone is compiled where the optimizer has
    functions of the caller's (a schedule that is none of ours, a learned optimizer) or draws
    random numbers; also, with a warning, where it is not one graph. Derivatives of a higher order
    are not compiled. Under `torch.func`, `torch.compile` and forward mode the gradient is that of
    `Recorded`.

    Attributes:
        dynamic: Whether sizes are variables of the graph: ``None`` once a second size was met,
            ``True`` from the first on, ``False`` never, so that each size has its own graph.
        backend: Which compiler, as `torch.compile` has it.

    Example:
        >>> import torch
        >>> from diffopt_explicit import Compiled, sgd, unroll
        >>> start = torch.tensor(1.0, requires_grad=True)
        >>> way = Compiled(backend="eager")
        >>> result = unroll(lambda w: w**2 / 2, sgd(lr=0.5), start, steps=3, gradient=way)
        >>> torch.autograd.grad(result.params, start)
        (tensor(0.1250),)
    """

    dynamic: bool | None = None
    backend: str | Callable[..., Any] = "inductor"

    def take(
        self,
        loss: Callable[..., Any],
        params: Tree,
        arguments: tuple[Tree, ...],
        *,
        aux: bool,
        create_graph: bool,
    ) -> tuple[Tensor, Any, Tree]:
        """Return the loss, what it returns besides, and its gradient."""
        if transformed():
            return Recorded().take(loss, params, arguments, aux=aux, create_graph=create_graph)
        with_aux = loss if aux else with_nothing(loss)
        whole = Whole(with_aux, params, arguments, ())
        graphs = graphs_of(code_of(loss), self.dynamic, self.backend)
        work = CompiledWork(graphs, _Gradient(with_aux), whole)
        value, grads, extra = work.first()
        for leaf in work.found:
            raise ValueError(
                f"The loss closes over {_name(loss, leaf)}, which requires grad, so a compiled "
                "derivative would miss it. Pass it by `meta_params` or `batches`, detach it, or "
                "use `Recomputed()`."
            )
        return whole.attached(work, value, extra, tree_leaves(grads), create_graph=create_graph)


def value_and_gradient(
    loss: Any, params: Tree, arguments: tuple[Tree, ...]
) -> tuple[Tensor, Any, Tree]:
    """Call ``loss(params, *arguments) -> (loss, aux)``; return both and the gradient."""
    return by_transform(loss, params, arguments, create_graph=True)


@dataclass
class _Gradient:
    """A loss, its gradient, and what it returns besides."""

    loss: Callable[..., Any]

    def __call__(self, given: tuple[Tree, tuple[Tree, ...]]) -> tuple[Tensor, Tree, Any]:
        value, extra, grads = value_and_gradient(self.loss, *given)
        return value, grads, extra


Traced = Callable[[Any], tuple[Any, ...]]
"""A function of a tree, which returns a tree whose first leaf is the loss."""


def _call(function: Traced, given: Tree) -> tuple[Any, ...]:
    return function(given)


def _pull(
    function: Traced, given: Tree, places: Sequence[int], cotangents: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of the leaves in these places."""
    leaves, spec = tree_flatten(given)

    def outputs(tensors: list[Tensor]) -> list[Tensor]:
        replaced = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            replaced[place] = tensor
        return differentiable_leaves(function(tree_unflatten(spec, replaced)))

    found, pull_back, *_ = torch.func.vjp(outputs, [leaves[place] for place in places])
    return found[0], pull_back(list(cotangents))[0]


@dataclass
class Graphs:
    """The two functions that are compiled for each function of a tree."""

    call: Callable[..., Any]
    pull: Callable[..., Any] | None  # until it was found to be no graph


# Bounded, since losses that are made again and again have the same code.
@lru_cache(maxsize=256)
def graphs_of(code: Any, dynamic: bool | None, backend: Any) -> Graphs:
    """Those for functions of this code; one graph each for all `counts` that a function has."""
    patch: Any = torch.compiler.config.patch  # pyright: ignore[reportAttributeAccessIssue]
    counts = patch(dynamic_sources=r"L\['function'\]\.counts")
    call, pull = (one_graph(f, dynamic=dynamic, backend=backend) for f in (_call, _pull))
    return Graphs(counts(call), counts(pull))


def one_graph(function: Any, *, dynamic: bool | None, backend: Any) -> Callable[..., Any]:
    """The function compiled into one graph, apart from what was compiled of it before.

    Dynamo keeps what it has compiled by code, and only so much for each: hence a copy.
    """
    copy = FunctionType(function.__code__.replace(), function.__globals__)
    backend = inductor if backend == "inductor" else backend
    return torch.compile(copy, fullgraph=True, dynamic=dynamic, backend=backend)


def code_of(loss: Any) -> Any:
    """By which losses are told apart."""
    return getattr(loss, "__code__", type(loss))


class CompiledWork:
    """A function by a graph, whose derivative is another one."""

    def __init__(self, graphs: Graphs, function: Traced, eager: Any) -> None:
        self.graphs, self.function, self.eager = graphs, function, eager
        self.outside: list[Tensor] = []
        self.found: list[Tensor] = []  # leaves of the graph that it closes over: there must be none
        self.shapes: list[Shape] = []  # of the outputs

    def first(self) -> Any:
        """Compute it for the first time."""
        variables = self.eager.variables
        given = variables.tree([tensor.detach() for tensor in variables.tensors])
        with torch.enable_grad(), explained():
            results = self.graphs.call(self.function, given)
        outside = Outside()
        outside.find(results)
        self.found = outside.leaves
        self.shapes = shapes_of(results)
        return results

    def run(self, tensors: Sequence[Any], *, create_graph: bool) -> list[Tensor | None]:
        """Compute it again, not compiled."""
        return self.eager.run(tensors, create_graph=create_graph)

    def pulled(self, inputs: int) -> Work:
        """The compiled derivative."""
        return _CompiledPull(self, inputs)


class _CompiledPull:
    """The gradient of a `CompiledWork`."""

    def __init__(self, work: CompiledWork, inputs: int) -> None:
        self._work, self._inputs, self.outside = work, inputs, work.outside

    def run(self, tensors: Sequence[Any], *, create_graph: bool) -> list[Tensor | None]:
        """Compute it; this has no graph."""
        graphs, eager = self._work.graphs, self._work.eager
        if graphs.pull is not None:
            try:
                return self._by_graph(graphs.pull, tensors)
            except NotCompiledError as error:
                graphs.pull = None
                warnings.warn(f"A derivative is not compiled: {error.reason}.", stacklevel=2)
        return compute(Pulled(eager, self._inputs), tensors)

    def _by_graph(self, pull: Callable[..., Any], tensors: Sequence[Any]) -> list[Tensor | None]:
        variables, past = self._work.eager.variables, self._work.eager.past
        tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
        inputs, given = variables.tree(tensors[: self._inputs]), tensors[self._inputs :]
        # Always all and dense, so that one graph serves for each step.
        cotangents = [
            torch.zeros(shape.size, dtype=shape.dtype, device=variables.device)
            if bar is None
            else bar.contiguous()
            for bar, shape in zip(given, self._work.shapes, strict=True)
        ]
        with torch.no_grad(), past.again(), explained():
            value, gradients = pull(self._work.function, inputs, variables.places, cotangents)
        past.compare(value)
        return list(gradients)

    def pulled(self, inputs: int) -> Work:
        """The third derivative, not compiled."""
        return Pulled(Pulled(self._work.eager, self._inputs), inputs)


class Shape(NamedTuple):
    """What zeros are made with in the place of a missing cotangent."""

    size: torch.Size
    dtype: torch.dtype


def shapes_of(results: Tree) -> list[Shape]:
    """Those of the tensors that can have gradients."""
    return [Shape(tensor.shape, tensor.dtype) for tensor in differentiable_leaves(results)]


class NotCompiledError(RuntimeError):
    """Raised for what the compiler cannot make one graph of."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The loss cannot be compiled into one graph: {reason}. Change what it calls, make "
            "tensors of numbers that change from step to step, or do not compile: "
            "`gradient=Recomputed()` does as well without."
        )
        self.reason = reason


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do when a loss cannot be compiled."""
    try:
        with warnings.catch_warnings():
            # Dynamo itself looks at the `.grad` of what a module holds, weights in a graph too.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            yield
    except Exception as error:
        from torch._dynamo.exc import TorchDynamoException  # slow to import, and there by now

        both = [e for e in (error, error.__cause__) if isinstance(e, TorchDynamoException)]
        if not both:
            raise
        reason = str(both[-1]).strip().partition("\n")[0].rstrip(".")
        raise NotCompiledError(reason) from error


def _name(function: Callable[..., Any], leaf: Tensor) -> str:
    """What a function calls a tensor that it closes over."""
    seen = inspect.getclosurevars(function) if inspect.isfunction(function) else None
    for name, value in {**seen.globals, **seen.nonlocals}.items() if seen else ():
        if any(found is leaf for found in tree_leaves(value)):
            return f"`{name}`"
        if isinstance(value, nn.Module):
            for inner, param in value.named_parameters():
                if param is leaf:
                    return f"`{name}.{inner}`"
    return f"a tensor of shape {tuple(leaf.shape)}"
