"""Total derivatives: of a problem's loss, with the solutions below it moving along."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from diffopt_implicit._adjoint_method import AdjointMethod
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._equation import LinearMap, attach, detached
from diffopt_implicit._inner_problem import InnerProblem
from diffopt_implicit._multilevel._graph import Graph, Names
from diffopt_implicit._multilevel._level import Level
from diffopt_implicit._multilevel._loss import Losses, Point
from diffopt_implicit._multilevel._unrolled_steps import UnrolledSteps
from diffopt_implicit._products import Selection
from diffopt_implicit._torch import Tensors, vjp

T = TypeVar("T")

# NOTE [total derivatives]
# Let C be the loss of a problem k and x_l(.) the solutions below it, each a function of the
# parameters of those above it, k and others of these solutions. `Slopes` are the derivatives of C
# in its own parameters and in each x_l that it reads. They are carried from the bottom to the top:
# once all of the cotangent of x_l is there, the method of (k, l) turns it into cotangents of what
# x_l depends on, and what arrives at k is the gradient. So every way from k's parameters to its
# loss is counted, and each solution is differentiated once.
#
# The optimality condition of x_l is the derivative of its *total* loss, `objective`, in which the
# solutions below l move with it. There they are attached (`_equation.attach`), so that the
# condition can be differentiated in turn, and the derivatives of x_l are those of nested minima.


class Program:
    """The levels of a program, and the derivatives between them.

    Attributes:
        graph: Which problem depends on which.
        levels: The problems in the course of their solution.
        adjoints: The last adjoint of each problem's derivative through each solution, None
            where the next is to begin at zero.
    """

    def __init__(self, graph: Graph, levels: dict[str, Level], warm_start: bool) -> None:
        self.graph, self.levels, self.warm_start = graph, levels, warm_start
        self.losses = Losses(levels)
        self.adjoints: dict[tuple[str, str], Tensors] = {}

    def now(self, names: Iterable[str]) -> Point:
        """Return the present parameters of problems."""
        return {name: detached(self.levels[name].leaves) for name in names}

    def gradient(self, name: str, slopes: Point) -> Tensors:
        """Carry the slopes of a loss to the parameters of its problem."""
        carried = dict(slopes)
        inner = (name, *self.graph.below[name])
        for low in reversed(self.graph.below[name]):
            if low not in carried:
                continue  # nothing in the loss, nor below, moves with it
            moving = tuple(other for other in self.graph.above[low] if other in inner)
            for other, found in self.pull(name, low, carried.pop(low), moving).items():
                carried[other] = sum_of(carried.get(other), found)
        return carried[name]

    @torch.no_grad()
    def pull(self, name: str, low: str, cotangent: Tensors, moving: Names) -> Point:
        """Turn a cotangent of a solution into cotangents of what moves it."""
        if not self.levels[low].last:
            raise ValueError(
                f"`{low}` has taken no step yet, and `{name}` is to differentiate its solution. "
                f"Lower `warmup_steps` of `{low}`, or raise that of `{name}`."
            )
        constants = self.now(self.graph.above[low])
        method = self.graph.problems[name].lower[low]
        if isinstance(method, UnrolledSteps):
            return self.pull_unrolled(low, method, cotangent, moving, constants)
        hparams = {other: constants[other] for other in moving}
        leaves = detached(self.levels[low].leaves)

        def inner(params: Tensors, hparams: Point) -> Tensor:
            return self.objective(low, params, {**constants, **hparams})

        def outer(params: Tensors, hparams: Point) -> Tensor:
            products = [(v * x).sum() for v, x in zip(cotangent, params, strict=True)]
            return torch.stack([product.double() for product in products]).sum()

        space, selection = Coordinates.of(leaves, "params"), Selection.of((hparams,), None)
        problem = InnerProblem(inner, outer, space, selection, leaves, selection.tensors())
        estimate = method.estimate(problem, self.adjoints.get((name, low)))
        if self.warm_start:
            self.adjoints[name, low] = detached(estimate.adjoint)
        (found,) = selection.like_args(estimate.gradient)
        return found

    def pull_unrolled(
        self, low: str, method: UnrolledSteps, cotangent: Tensors, moving: Names, constants: Point
    ) -> Point:
        """Do so through the steps that led to the solution."""

        def again(*tensors: Tensor) -> Tensors:
            at = {**constants, **like(constants, moving, tensors)}
            return self.losses.unrolled(low, at, method.steps)

        solution, back = vjp(again, *joined(constants, moving))
        self.losses.check_unrolled(low, solution)
        return like(constants, moving, back(cotangent))

    def objective(self, name: str, params: Tensors, above: Point) -> Tensor:
        """Evaluate a loss on what its last step was taken on, solutions moving along."""
        at = {**above, name: params}
        for low in self.graph.below[name]:
            at[low] = self.solution(name, low, at)
        return self.losses.repeated(name, at, self.levels[name].last)

    def solution(self, name: str, low: str, at: Point) -> Tensors:
        """Return a solution, differentiable in the parameters above it."""
        method, names = self.graph.problems[name].lower[low], self.graph.above[low]
        if isinstance(method, UnrolledSteps):
            return self.losses.unrolled(low, {other: at[other] for other in names}, method.steps)
        assert isinstance(method, AdjointMethod)  # checked with the methods

        def condition(params: Tensors, above: Tensors) -> Tensors:
            values = like(at, names, above)

            def value(*params: Tensor) -> Tensor:
                return self.objective(low, params, values)

            return torch.func.grad(value, argnums=tuple(range(len(params))))(*params)

        def solve(matvec: LinearMap, b: Tensors) -> Tensors:
            return method.solve(matvec, b, None)[0]

        return attach(condition, solve, detached(self.levels[low].leaves), joined(at, names))


def joined(point: Point, names: Names) -> Tensors:
    """Lay the tensors of problems side by side."""
    return tuple(tensor for name in names for tensor in point[name])


def like(point: Point, names: Names, tensors: Sequence[T]) -> dict[str, tuple[T, ...]]:
    """Undo `joined`."""
    rest = iter(tensors)
    return {name: tuple(next(rest) for _ in point[name]) for name in names}


def sum_of(ours: Tensors | None, theirs: Tensors) -> Tensors:
    """Add cotangents, of which the first may not be there yet."""
    if ours is None:
        return theirs
    return tuple(a + b for a, b in zip(ours, theirs, strict=True))
