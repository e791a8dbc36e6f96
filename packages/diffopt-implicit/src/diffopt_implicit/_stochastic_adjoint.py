"""Hypergradients by stochastic descent on the adjoint system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from diffopt_implicit._equation import detached
from diffopt_implicit._hypergradient_method import Estimate
from diffopt_implicit._inner_problem import InnerProblem, minus
from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._torch import Tensors

DESCENT = partial(torch.optim.SGD, lr=0.1)


@dataclass(frozen=True)
class StochasticAdjoint:
    """The adjoint by an optimizer's steps on ``u . H u / 2 - u . v``, a minibatch a step.

    The losses are called anew at each step and may draw a minibatch each time. Pass
    ``init=info.adjoint`` from one outer step to the next: one step each is then enough.

    Attributes:
        iterations: How many steps, at least 1.
        optimizer: Makes a torch optimizer for a list of tensors.

    Example:
        >>> import functools, torch
        >>> method = StochasticAdjoint(5, functools.partial(torch.optim.SGD, lr=0.1))
        >>> method.differentiable
        False

    Source:
        Dagréou, Ablin, Vaiter & Moreau, *A framework for bilevel optimization that enables
        stochastic and global variance reduction algorithms*, NeurIPS 2022, section 2 (SOBA);
        Arbel & Mairal, *Amortized implicit differentiation*, ICLR 2022.
    """

    iterations: int = 1
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] = DESCENT

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("iterations", self.iterations)

    def estimate(self, problem: InnerProblem, init: Tensors | None) -> Estimate:
        """Return the hypergradient after the steps."""
        start = problem.params if init is None else init
        u = [t.detach().clone() if init else torch.zeros_like(t) for t in start]
        optimizer = self.optimizer(u)
        for _ in range(self.iterations):
            v, _ = problem.outer_slopes(problem.params)
            for leaf, slope in zip(u, minus(problem.products().hessian(tuple(u)), v), strict=True):
                leaf.grad = slope
            optimizer.step()
        v, direct = problem.outer_slopes(problem.params)
        adjoint, (hessian, mixed) = detached(tuple(u)), problem.products()
        return Estimate(
            minus(direct, mixed(adjoint)),
            adjoint,
            v,
            lambda: hessian(adjoint),
            mixed,
            self.iterations,
        )
