"""Whether the graphs of an unroll fit, which its first step tells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffopt_explicit._compiled_step import CompiledStep
from diffopt_explicit._graph_bytes import graph_bytes
from diffopt_explicit._outside import tensors_in_graph
from diffopt_explicit._snapshots import nothing_changed
from diffopt_explicit._store import Step
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_leaves

if TYPE_CHECKING:
    from diffopt_explicit._replay import Replay


class Fitting:
    """Steps that are stored, as long as all graphs fit.

    Attributes:
        size: How many steps' graphs to keep at once, known after the first step.
    """

    def __init__(self, adjoint: Replay, step: Step, start: Tree) -> None:
        self._adjoint, self._step, self._start = adjoint, step, start
        self._last: tuple[Tree, Tree] | None = None  # what the last step gave, and was given
        self.size = 1

    def step(self, carry: Tree, arguments: tuple[Tree, ...], create_graph: bool) -> Any:
        """The step, whose results are noted."""
        results = self._step(carry, arguments, create_graph)
        self._last = results, arguments
        return results

    def as_they_fit(self, inputs: list[tuple[Tree, ...]]) -> Iterator[tuple[Tree, ...]]:
        """What the steps get: that of the first, and of all others if their graphs fit, too."""
        yield from inputs[:1]
        if len(inputs) > 1:
            self._fit(inputs)
        if self.size >= len(inputs):
            yield from inputs[1:]

    def after_the_first(self, inputs: list[tuple[Tree, ...]]) -> int:
        """How many fit, by a first step that is taken for this alone."""
        if len(inputs) > 1:
            self.step(self._start, inputs[0], True)
            self._fit(inputs)
        return self.size

    def _fit(self, inputs: list[tuple[Tree, ...]]) -> None:
        """Find out how many steps' graphs fit, where that of the first was the last one taken."""
        assert self._last is not None
        results, arguments = self._last
        start = _tensors(self._start)
        graph = graph_bytes(tensors_in_graph(results), [*start, *_tensors(arguments)])
        # Of more data a step has a graph that is larger in proportion, or less.
        graph = math.ceil(graph * most_data(inputs))
        steps = len(inputs)
        size = self._adjoint.graphs_that_fit(steps, graph, sum(map(_bytes, start)))
        # Compiled steps go back faster without a graph, if they are taken again.
        thrifty = size < steps and isinstance(self._step, CompiledStep)
        self.size = 1 if thrifty else size


def most_data(inputs: list[tuple[Tree, ...]]) -> float:
    """How many times as large as the first step's the data of any step are, at least 1.

    Data are tensors that the first step gets and another one does not, or the other way round.
    """
    first = {id(tensor): _bytes(tensor) for tensor in _tensors(inputs[0])}
    most = 1.0
    for arguments in inputs[1:]:
        other = {id(tensor): _bytes(tensor) for tensor in _tensors(arguments)}
        own, instead = (
            sum(size for key, size in some.items() if key not in rest)
            for some, rest in ((other, first), (first, other))
        )
        most = max(most, own / max(instead, 1))
    return most


def _tensors(tree: Tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def at_once(adjoint: Replay, step: Step, start: Tree, inputs: list[tuple[Tree, ...]]) -> int:
    """How many steps of a run to differentiate at once."""
    if adjoint.graphs_at_once is not None:
        return adjoint.graphs_at_once
    with nothing_changed(start, adjoint.modules), torch.enable_grad():
        return Fitting(adjoint, step, start).after_the_first(inputs)
