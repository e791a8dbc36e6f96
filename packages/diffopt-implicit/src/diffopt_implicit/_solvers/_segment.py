"""Some updates of a solver, of which nothing is recorded but what goes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from pytree_core import tree_leaves
from torch import Tensor

from diffopt_implicit._equation import LinearMap, transpose
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._solvers._form import Form
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import Tensors, alive, outside_graphs, vjp

if TYPE_CHECKING:
    from diffopt_implicit._solvers._solver import Solver


@dataclass(frozen=True)
class Segment:
    """Some updates, as a function of the tensors that go in.

    Attributes:
        solver: The solver.
        count: At most so many updates.
        inputs: ``(params, state, args, kwargs)`` without their tensors.
        outputs: Filled with ``(params, state)`` without theirs.
    """

    solver: Solver
    count: int
    inputs: Form
    outputs: list[Form] = field(default_factory=list)

    def step(self, tensors: Tensors) -> OptStep:
        """Take the updates."""
        params, state, args, kwargs = self.inputs.tree(tensors)
        return self.solver.advanced(OptStep(params, state), self.count, *args, **kwargs)

    def again(self) -> Callable[..., Tensors]:
        """Return the map from inputs to outputs that have derivatives, of which none is told."""
        quiet = replace(self, solver=replace(self.solver, callback=None, verbose=False))
        return lambda *tensors: tuple(
            leaf for leaf in tree_leaves(quiet.step(tensors)) if is_differentiable(leaf)
        )


def recomputed(solver: Solver, count: int, inputs: Tree) -> tuple[Tree, Any]:
    """Take updates, of which nothing is recorded but their inputs."""
    tensors, form = Form.of(inputs)
    segment = Segment(solver, count, form)
    moved = _Segment.apply(segment, *tensors)
    return segment.outputs[0].tree(moved)  # type: ignore[no-any-return]


def is_differentiable(leaf: Any) -> bool:
    """Tell whether a leaf is a tensor that may have derivatives."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


class _Segment(torch.autograd.Function):
    """Some updates, computed again where their derivatives are wanted."""

    generate_vmap_rule = True

    @staticmethod
    def forward(segment: Segment, *tensors: Tensor) -> Tensors:
        moved, form = Form.of(tuple(segment.step(tensors)))
        segment.outputs[:] = [form]
        return tuple(tensor.clone() for tensor in moved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.segment = inputs[0]
        ctx.moves = [is_differentiable(leaf) for leaf in output]
        ctx.mark_non_differentiable(*(leaf for leaf in output if not is_differentiable(leaf)))
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    @outside_graphs
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors = alive(ctx.saved_tensors)
        chosen = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        _, pull = pullback(ctx.segment, tensors, chosen)
        given = tuple(c for c, moves in zip(cotangents, ctx.moves, strict=True) if moves)
        gradients: list[Tensor | None] = [None] * (1 + len(tensors))
        for i, gradient in zip(chosen, pull(given), strict=True):
            gradients[1 + i] = gradient
        return tuple(gradients)

    @staticmethod
    @outside_graphs
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        tensors = alive(ctx.saved_tensors)
        given = tangents[1:]
        chosen = [
            i
            for i, (leaf, tangent) in enumerate(zip(tensors, given, strict=True))
            if tangent is not None and is_differentiable(leaf)
        ]
        like, pull = pullback(ctx.segment, tensors, chosen)
        moved = iter(transpose(pull, like)(alive(given[i] for i in chosen)))
        return tuple(next(moved) if moves else None for moves in ctx.moves)


def pullback(segment: Segment, tensors: Tensors, chosen: list[int]) -> tuple[Tensors, LinearMap]:
    """Return the outputs of a segment and their vector-Jacobian product in the chosen tensors."""

    def outputs(*values: Tensor) -> Tensors:
        replaced = list(tensors)
        for i, value in zip(chosen, values, strict=True):
            replaced[i] = value
        return segment.again()(*replaced)

    values, pull = vjp(outputs, *(tensors[i] for i in chosen))
    return values, pull
