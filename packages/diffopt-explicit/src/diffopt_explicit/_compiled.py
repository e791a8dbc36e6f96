"""Inner gradients and their derivatives, each compiled once for all steps."""

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
from diffopt_explicit._node import Pulled, Work
from diffopt_explicit._outside import Outside, differentiable
from diffopt_explicit._recomputed import Whole
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_flatten, tree_leaves, tree_unflatten


@dataclass(frozen=True)
class Compiled:
    """Compile an inner gradient, and its derivative, each into one graph for all steps.

    What is kept of a step is what `Recomputed` keeps; the two graphs are those of the loss's
    gradient and of the pull-back of cotangents through it. They are compiled at the first step,
    for the code of the loss: another loss of the same code is not compiled again. Compilation
    takes seconds for a small network, whatever the number of steps, and is read from torch's cache
    on disk (``TORCHINDUCTOR_CACHE_DIR``) when the program is run again.

    What the loss depends on must be passed to it, by `meta_params` or `batches`: tensors that
    require grad and that it closes over are refused. A parameter that the loss does not depend on
    gets a gradient of zero. Derivatives of a higher order are not compiled. Under `torch.func`,
    `torch.compile` and forward mode the gradient is that of `Recorded`.

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
        work = _CompiledWhole(_graphs(_code(loss), self.dynamic, self.backend), with_aux, whole)
        value, extra, grads = work.first(loss)
        return whole.attached(work, value, extra, grads, create_graph=create_graph)


class _Graphs(NamedTuple):
    """The two functions that are compiled for a loss."""

    gradient: Callable[..., Any]
    pull: Callable[..., Any]


# Bounded, since losses that are made again and again have the same code.
@lru_cache(maxsize=256)
def _graphs(code: Any, dynamic: bool | None, backend: Any) -> _Graphs:
    """Those for losses of this code."""
    compiled = [one_graph(f, dynamic=dynamic, backend=backend) for f in (value_and_gradient, _pull)]
    return _Graphs(*compiled)


def one_graph(function: Any, **options: Any) -> Callable[..., Any]:
    """The function compiled into one graph, apart from what was compiled of it before.

    Dynamo keeps what it has compiled by code, and only so much for each: hence a copy.
    """
    code = function.__code__.replace()
    return torch.compile(FunctionType(code, function.__globals__), fullgraph=True, **options)


def _code(loss: Callable[..., Any]) -> Any:
    return getattr(loss, "__code__", type(loss))


def value_and_gradient(
    loss: Any, params: Tree, arguments: tuple[Tree, ...]
) -> tuple[Tensor, Any, Tree]:
    """Call ``loss(params, *arguments) -> (loss, aux)``; return both and the gradient."""
    return by_transform(loss, params, arguments, create_graph=True)


def _pull(
    loss: Any,
    params: Tree,
    arguments: tuple[Tree, ...],
    places: Sequence[int],
    cotangents: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of the leaves in these places."""
    leaves, spec = tree_flatten((params, arguments))

    def outputs(tensors: list[Tensor]) -> list[Tensor]:
        replaced = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            replaced[place] = tensor
        value, extra, grads = by_transform(loss, *tree_unflatten(spec, replaced), create_graph=True)
        return [value, *tree_leaves(grads), *filter(differentiable, tree_leaves(extra))]

    found, pull_back, *_ = torch.func.vjp(outputs, [leaves[place] for place in places])
    return found[0], pull_back(list(cotangents))[0]


class _CompiledWhole:
    """A loss and its gradient by a compiled function, whose derivative is another one."""

    def __init__(self, graphs: _Graphs, loss: Callable[..., Any], whole: Whole) -> None:
        self.graphs, self.loss, self.whole = graphs, loss, whole
        self.outside: list[Tensor] = []
        self.like: list[Tensor] = []  # the outputs, without their memory

    def first(self, named: Callable[..., Any]) -> tuple[Tensor, Any, list[Tensor | None]]:
        """Compute them for the first time; `named` is the loss as the caller knows it."""
        params, arguments = self.whole.trees([tensor.detach() for tensor in self.whole.tensors])
        with torch.enable_grad(), explained():
            value, extra, grads = self.graphs.gradient(self.loss, params, arguments)
        outside = Outside()
        outside.find((value, extra, grads))
        for leaf in outside.leaves:
            raise ValueError(
                f"The loss closes over {_name(named, leaf)}, which requires grad, so a compiled "
                "derivative would miss it. Pass it by `meta_params` or `batches`, detach it, or "
                "use `Recomputed()`."
            )
        outputs = [value, *tree_leaves(grads), *filter(differentiable, tree_leaves(extra))]
        self.like = [torch.empty_like(output, device="meta") for output in outputs]
        return value, extra, tree_leaves(grads)

    def run(self, tensors: Sequence[Any], *, create_graph: bool) -> list[Tensor | None]:
        """Compute them again, not compiled."""
        return self.whole.run(tensors, create_graph=create_graph)

    def pulled(self, inputs: int) -> Work:
        """The compiled derivative."""
        return _CompiledPull(self, inputs)


class _CompiledPull:
    """The gradient of a `_CompiledWhole`."""

    def __init__(self, work: _CompiledWhole, inputs: int) -> None:
        self._work, self._inputs, self.outside = work, inputs, work.outside

    def run(self, tensors: Sequence[Any], *, create_graph: bool) -> list[Tensor | None]:
        """Compute it; this has no graph."""
        tensors = [None if tensor is None else tensor.detach() for tensor in tensors]
        inputs, given = tensors[: self._inputs], tensors[self._inputs :]
        whole, like = self._work.whole, self._work.like
        # Always all and dense, so that one graph serves for each step.
        cotangents = [
            torch.zeros_like(meta, device=whole.device) if bar is None else bar.contiguous()
            for bar, meta in zip(given, like, strict=True)
        ]
        with torch.no_grad(), whole.past.again(), explained():
            trees = whole.trees(inputs)
            pull = self._work.graphs.pull
            value, gradients = pull(self._work.loss, *trees, whole.places, cotangents)
        whole.past.compare(value)
        return list(gradients)

    def pulled(self, inputs: int) -> Work:
        """The third derivative, not compiled."""
        return Pulled(Pulled(self._work.whole, self._inputs), inputs)


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
        raise RuntimeError(
            f"The loss cannot be compiled into one graph: {reason}. Change what it calls, make "
            "tensors of numbers that change from step to step, or do not compile: "
            "`gradient=Recomputed()` does as well without."
        ) from error


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
