"""Inner steps, optimizer and all, and their derivatives, each compiled once for all steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._compiled import (
    Compiled,
    CompiledWork,
    Graphs,
    NotCompiledError,
    Shape,
    code_of,
    graphs_of,
)
from diffopt_explicit._gradient import Recorded, transformed
from diffopt_explicit._inner_step import InnerStep
from diffopt_explicit._node import Pulled, Work, attach
from diffopt_explicit._outside import Outside, differentiable, differentiable_leaves
from diffopt_explicit._override import anatomy
from diffopt_explicit._pull import Sums, gradients_of
from diffopt_explicit._recomputed import Past, Variables
from diffopt_explicit._snapshots import Random
from diffopt_explicit._store import Step
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import detach, tree_flatten, tree_leaves, tree_map, tree_unflatten

Carry = tuple[Tree, Any]
Results = tuple[Tensor, Carry, Any]  # the loss, the carry after the step, and what else there is


def compiled(step: InnerStep) -> Step:
    """The step, by graphs of the whole of it if its gradient shall be compiled."""
    return CompiledStep(step) if isinstance(step.gradient, Compiled) else step


@dataclass
class _Kind:
    """What steps have in common whose code is the same."""

    graphs: Graphs
    in_parts: bool | None = None  # once that is known


# Bounded, since losses that are made again and again have the same code.
@lru_cache(maxsize=256)
def _kind(*code: Any, dynamic: bool | None, backend: Any) -> _Kind:
    return _Kind(graphs_of(code, dynamic, backend))


class CompiledStep:
    """A step as one graph, and its derivative as another.

    NOTE [steps that are compiled in parts]
    A graph takes for constant what it is not given, and what it does to random numbers is its own
    affair. So the gradient of the loss alone is compiled, and the optimizer not, where that has
    functions of the caller's, such as a schedule, draws random numbers, or is not one graph.
    """

    def __init__(self, step: InnerStep) -> None:
        way = step.gradient
        assert isinstance(way, Compiled)
        code = code_of(step.loss), anatomy(step.tx), step.aux, step.first_order
        self._kind = _kind(*code, dynamic=way.dynamic, backend=way.backend)
        self._in_parts = step
        parts = _leaves(step.tx)
        self._never_whole = any(map(callable, parts))
        self._learned = [x for x in parts if isinstance(x, Tensor) and x.requires_grad]
        places = {id(tensor): _Place(i) for i, tensor in enumerate(self._learned)}
        tx = _changed(step.tx, lambda leaf: places.get(id(leaf), leaf), _with_fields)
        self._step = replace(step, tx=tx, gradient=Recorded())
        self._shapes: list[Shape] | None = None  # of what a step gives, once there was one

    def __call__(self, carry: Carry, arguments: tuple[Tree, ...], create_graph: bool) -> Any:
        """Take a step."""
        if transformed() or self._is_in_parts(carry):
            return self._in_parts(carry, arguments, create_graph)
        taken = _Taken(self._step, self._learned, carry, arguments)
        work = CompiledWork(self._kind.graphs, taken.traced, taken)
        try:
            results = work.first()
        except NotCompiledError as error:
            self._kind.in_parts = True
            done = self._in_parts(carry, arguments, create_graph)
            warnings.warn(
                f"The gradient of the inner loss is compiled, but {self._in_parts.tx!r} is not: "
                f"{error.reason}.",
                stacklevel=2,
            )
            return done
        if work.found:  # which is refused in parts, if the loss is its cause
            self._never_whole = True
            taken.past.random.restore()
            return self._in_parts(carry, arguments, create_graph)
        taken.past.remember(results[0])
        self._shapes = work.shapes
        return _attached(work, results)

    def promised(self, first: int, carry: Carry, arguments: tuple[Tree, ...]) -> Promised | None:
        """Step `first`, which was taken before, to be pulled back as one graph, if it can be."""
        shapes = None if self._in_parts.aux else self._shapes
        if shapes is None or self._is_in_parts(carry):
            return None
        taken = _Taken(self._step, self._learned, carry, arguments)
        work = CompiledWork(self._kind.graphs, taken.traced, taken)
        work.shapes = shapes
        return Promised(first, work, len(self._learned))

    def _is_in_parts(self, carry: Carry) -> bool:
        if self._kind.in_parts is None and not self._never_whole:
            self._kind.in_parts = _is_impure(self._in_parts.tx, carry)
        return self._never_whole or bool(self._kind.in_parts)


class _Place:
    """Stands for a count, or a tensor, that is given."""

    def __init__(self, index: int) -> None:
        self.index = index


@dataclass
class _Traced:
    """A step as a function of a tree, in which its counts are not."""

    step: InnerStep
    counts: list[int]  # each two too high: 0 and 1 would have graphs of their own

    def __call__(self, given: tuple[Carry, tuple[Tree, ...], list[Tensor]]) -> Results:
        carry, arguments, learned = given
        leaves, spec = tree_flatten(carry)
        leaves = [self.counts[x.index] - 2 if isinstance(x, _Place) else x for x in leaves]

        def put(leaf: Any) -> Any:
            return learned[leaf.index] if isinstance(leaf, _Place) else leaf

        step = self.step
        if learned:
            step = replace(step, tx=_changed(step.tx, put, replace))
        after, value, extra = step(tree_unflatten(spec, leaves), arguments, True)
        return value, after, extra


class _Taken:
    """A step, as a function of tensors."""

    def __init__(
        self, step: InnerStep, learned: list[Tensor], carry: Carry, arguments: tuple[Tree, ...]
    ) -> None:
        leaves, spec = tree_flatten(carry)
        counts = sorted({leaf for leaf in leaves if type(leaf) is int})
        places = {count: _Place(i) for i, count in enumerate(counts)}
        leaves = [places[leaf] if type(leaf) is int else leaf for leaf in leaves]
        self.variables = Variables((tree_unflatten(spec, leaves), arguments, learned), len(leaves))
        self.past = Past(self.variables.leaves, ())
        self.traced = _Traced(step, [count + 2 for count in counts])
        self.outside: list[Tensor] = []

    def run(self, tensors: Sequence[Any], *, create_graph: bool) -> list[Tensor | None]:
        """Compute it again, not compiled."""
        with self.past.again():
            results = self.traced(self.variables.tree(tensors))
        self.past.compare(results[0])
        return [*differentiable_leaves(results)]

    def pulled(self, inputs: int) -> Work:
        """Its gradient, by autograd."""
        return Pulled(self, inputs)


class Promised:
    """A step whose results are not computed, since it is only pulled back."""

    def __init__(self, first: int, work: CompiledWork, learned: int) -> None:
        self.first, self._work, self._learned = first, work, learned
        self.counts = len(work.shapes) - 1, 0

    def pull(
        self, cotangents: Sequence[Tensor | None], outside: list[Tensor], sums: Sums
    ) -> list[Tensor | None]:
        """The gradients of the carry before the step; those of all else go to `sums`."""
        *of_carry, of_loss = cotangents
        tensors, count = self._work.eager.variables.tensors, len(of_carry)
        pull = self._work.pulled(len(tensors))
        found = pull.run([*tensors, of_loss, *of_carry], create_graph=False)
        end = len(tensors) - self._learned
        # What is learned may have been computed from the leaves outside.
        learned = gradients_of(tensors[end:], found[end:], outside, retain_graph=True)
        given = zip(tensors[count:end], found[count:end], strict=True)
        for tensor, gradient in [*given, *zip(outside, learned, strict=True)]:
            sums.add(tensor, gradient)
        return found[:count]


def _attached(work: CompiledWork, results: Results) -> tuple[Carry, Tensor, Any]:
    """The results as part of the graph of what they were computed from."""
    variables = work.eager.variables
    leaves, spec = tree_flatten(results)
    places = [i for i, leaf in enumerate(leaves) if differentiable(leaf)]
    tensors, variables.tensors = variables.tensors, []
    for i, leaf in zip(places, attach(work, [leaves[i] for i in places], tensors), strict=True):
        leaves[i] = leaf
    value, carry, extra = tree_unflatten(spec, leaves)
    return carry, value, extra


def _is_impure(tx: Transform, carry: Carry) -> bool:
    """Whether an optimizer draws random numbers, or hides tensors of a graph."""
    own = _changed(tx, lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, replace)
    params, state = detach(carry)
    random, outside = Random.of(params), Outside()
    with torch.enable_grad():
        outside.find(own.update(tree_map(torch.zeros_like, params), state, params))
    if random.is_now():
        return bool(outside.leaves)
    random.restore()
    return True


def _leaves(tx: Any) -> list[Any]:
    """All that the fields of a transform hold, but for dataclasses, of which it is the fields."""
    if not _has_fields(tx):
        return [tx]
    values = [tree_leaves(getattr(tx, field.name)) for field in fields(tx)]
    return [leaf for value in values for part in value for leaf in _leaves(part)]


def _changed(tx: Any, change: Callable[[Any], Any], replaced: Callable[..., Any]) -> Any:
    """The transform with other leaves."""
    if not _has_fields(tx):
        return change(tx)

    def one(part: Any) -> Any:
        return _changed(part, change, replaced)

    return replaced(tx, **{f.name: tree_map(one, getattr(tx, f.name)) for f in fields(tx)})


def _has_fields(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _with_fields(owner: Any, **values: Any) -> Any:
    """What `replace` does, without a check of the values."""
    new = copy.copy(owner)
    for name, value in values.items():
        object.__setattr__(new, name, value)
    return new
