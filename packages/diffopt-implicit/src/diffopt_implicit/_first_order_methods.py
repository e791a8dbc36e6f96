"""Methods for hypergradients that take first derivatives alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffopt_implicit._hypergradient_method import Estimate
from diffopt_implicit._inner_problem import InnerProblem, minus, plus, scaled
from diffopt_implicit._linear_system import check_nonnegative, check_positive
from diffopt_implicit._root_check import size
from diffopt_implicit._torch import Tensors, vjp, whole


@dataclass(frozen=True)
class FiniteDifference:
    """The adjoint ``u = step_size v``, and ``B^T u`` by a central difference.

    ``B^T u = (grad_lam inner(w + e u) - grad_lam inner(w - e u)) / 2 e``, with
    ``e = epsilon / |u|``: two gradients, and no second derivative, of which some operations
    have none.

    Attributes:
        epsilon: The distance in the space of the parameters, positive.
        step_size: Positive, that of the inner descent.

    Example:
        >>> FiniteDifference()
        FiniteDifference(epsilon=0.01, step_size=1.0)

    Source:
        Liu, Simonyan & Yang, *DARTS: differentiable architecture search*, ICLR 2019, eqs. 7, 8.
    """

    epsilon: float = 0.01
    step_size: float | Tensor = 1.0

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)
        check_positive("step_size", self.step_size)

    def estimate(self, problem: InnerProblem, init: Tensors | None) -> Estimate:
        """Return the hypergradient by one difference."""
        v, direct = problem.outer_slopes(problem.params)
        return by_difference(problem, v, direct, scaled(self.step_size, v), self.epsilon)


@dataclass(frozen=True)
class SAMA:
    """The adjoint through the last step of an adaptive optimizer, ``B^T u`` by a difference.

    The inverse of the Hessian is taken for what the optimizer takes it for: with ``update``
    the change that it makes to the parameters for a gradient ``g`` of the inner loss,
    ``u = -(d update / dg)^T v``, evaluated at the parameters.

    Attributes:
        update: ``gradients -> updates``, trees like the parameters, the updates to be *added*,
            such as ``lambda g: tx.update(g, state, params)[0]`` of a transform; None for
            ``-gradients``, plain descent.
        alpha: The distance of the difference, positive.

    Example:
        >>> SAMA(lambda g: -0.1 * g).alpha
        1.0

    Source:
        Choe, Mehta, Ahn, Neiswanger, Xie, Strubell & Xing, *Making scalable meta learning
        practical*, NeurIPS 2023, eqs. 3 to 5.
    """

    update: Callable[[Any], Any] | None = None
    alpha: float = 1.0

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)

    def estimate(self, problem: InnerProblem, init: Tensors | None) -> Estimate:
        """Return the hypergradient by one difference."""
        v, direct = problem.outer_slopes(problem.params)
        return by_difference(problem, v, direct, self.adjoint(problem, v), self.alpha)

    def adjoint(self, problem: InnerProblem, v: Tensors) -> Tensors:
        """Return ``-(d update / dg)^T v``."""
        update = self.update
        if update is None:
            return v
        gradient, _ = problem.inner_slopes(problem.params)

        def change(*g: Tensor) -> Tensors:
            return problem.vector(update(problem.tree(g)), "What `update` returns")

        _, pull = vjp(change, *gradient)
        return scaled(-1.0, pull(v))


@dataclass(frozen=True)
class F2SA:
    """The adjoint as the answer of the minimum to a small share of the outer loss.

    ``y`` minimizes ``inner + outer / penalty``, found by descent from the parameters, and
    ``u = penalty (w - y)``::

        gradient = d outer/dlam (y) + penalty (d inner/dlam (y) - d inner/dlam (w))

    Three gradients a step, exact up to ``O(1 / penalty)`` once the descent has converged.

    Attributes:
        iterations: How many steps of descent, at least 1.
        step_size: Positive, of these steps; below 2 / the inner Hessian's largest eigenvalue.
        penalty: Positive; in float32 not far beyond 1000, as rounding is enlarged by it.

    Example:
        >>> F2SA(20, step_size=0.5)
        F2SA(iterations=20, step_size=0.5, penalty=100.0)

    Source:
        Kwon, Kwon, Wright & Nowak, *A fully first-order method for stochastic bilevel
        optimization*, ICML 2023, algorithm 1, with the parameters in the place of its ``z``.
    """

    iterations: int = 10
    step_size: float | Tensor = 0.1
    penalty: float = 100.0

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("iterations", self.iterations)
        check_positive("step_size", self.step_size)
        check_positive("penalty", self.penalty)

    def estimate(self, problem: InnerProblem, init: Tensors | None) -> Estimate:
        """Return the hypergradient by the penalized descent."""
        w = problem.params
        inner_w, inner_lam = problem.inner_slopes(w)
        y = w if init is None else minus(w, scaled(1 / self.penalty, init))
        for _ in range(self.iterations):
            pulled = scaled(1 / self.penalty, problem.outer_slopes(y)[0])
            slope = plus(problem.inner_slopes(y)[0], pulled)
            y = minus(y, scaled(self.step_size, slope))
        v, direct = problem.outer_slopes(y)
        there_w, there_lam = problem.inner_slopes(y)
        change = scaled(self.penalty, minus(there_lam, inner_lam))
        return Estimate(
            plus(direct, change),
            scaled(self.penalty, minus(w, y)),
            v,
            lambda: scaled(self.penalty, minus(inner_w, there_w)),
            lambda r: central_difference(problem, r, 1 / self.penalty)[1],
            self.iterations,
        )


@dataclass(frozen=True)
class BOME:
    """The hyperparameters' part of a joint descent, with a barrier that holds the inner loss.

    With ``q = inner(w, lam) - inner(w_T, lam)``, ``w_T`` being `iterations` steps of inner
    descent from ``w`` and held fixed::

        direction = grad outer + m grad q
        m = max(eta - <grad outer, grad q> / |grad q|^2, 0)

    in ``w`` and ``lam`` together. Unlike for other methods the parameters are *not* solved in
    between, where ``q`` would be 0: move them too, by ``params - step * info.direction``.

    Attributes:
        iterations: How many steps of descent, at least 1.
        step_size: Positive, of these steps.
        eta: How strongly the inner loss is held, positive.

    Example:
        >>> BOME(10, step_size=0.5).eta
        0.5

    Source:
        Ye, Liu, Wright, Stone & Liu, *BOME! Bilevel optimization made easy*, NeurIPS 2022,
        algorithm 1, eqs. 6 and 7.
    """

    iterations: int = 10
    step_size: float | Tensor = 0.1
    eta: float = 0.5

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("iterations", self.iterations)
        check_positive("step_size", self.step_size)
        check_nonnegative("eta", self.eta)

    def estimate(self, problem: InnerProblem, init: Tensors | None) -> Estimate:
        """Return the joint direction."""
        w = problem.params
        v, direct = problem.outer_slopes(w)
        inner_w, inner_lam = problem.inner_slopes(w)
        end, step, end_lam = w, inner_w, inner_lam
        for _ in range(self.iterations):
            end = minus(end, scaled(self.step_size, step))
            step, end_lam = problem.inner_slopes(end)
        barrier_lam = minus(inner_lam, end_lam)
        outer, barrier = (*v, *direct), (*inner_w, *barrier_lam)
        m = multiplier(outer, barrier, self.eta)
        return Estimate(
            plus(direct, scaled(m, barrier_lam)),
            scaled(m, minus(end, w)),
            v,
            lambda: scaled(m, minus(step, inner_w)),
            lambda r: central_difference(problem, r, 0.01)[1],
            self.iterations,
            plus(v, scaled(m, inner_w)),
        )


def multiplier(outer: Tensors, barrier: Tensors, eta: float) -> Tensor:
    """Return the weight of a barrier's gradient that keeps the barrier falling."""
    product = torch.stack(
        [whole((a.conj() * b).sum()).real.double() for a, b in zip(outer, barrier, strict=True)]
    ).sum()
    square = size(barrier) ** 2
    share = torch.where(square > 0, product / torch.where(square > 0, square, 1.0), eta)
    return (eta - share).clamp(min=0)


def by_difference(
    problem: InnerProblem, v: Tensors, direct: Tensors, u: Tensors, epsilon: float
) -> Estimate:
    """Return the estimate of an adjoint, with its products by finite differences."""
    product, mixed = central_difference(problem, u, epsilon)
    return Estimate(
        minus(direct, mixed),
        u,
        v,
        lambda: product,
        lambda r: central_difference(problem, r, epsilon)[1],
        0,
    )


def central_difference(
    problem: InnerProblem, u: Tensors, epsilon: float
) -> tuple[Tensors, Tensors]:
    """Return ``H u`` and ``B^T u`` by inner slopes at a distance of `epsilon` both ways."""
    length = size(u)
    step = epsilon / torch.where(length > 0, length, 1.0)
    moved = scaled(step, u)
    ahead = problem.inner_slopes(plus(problem.params, moved))
    behind = problem.inner_slopes(minus(problem.params, moved))
    product, mixed = (scaled(0.5 / step, minus(a, b)) for a, b in zip(ahead, behind, strict=True))
    return product, mixed
