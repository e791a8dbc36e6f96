"""Hypergradients by the adjoint of the last steps of inner descent."""

from __future__ import annotations

from dataclasses import dataclass

from pytree_core import tree_map
from torch import Tensor

from diffopt_implicit._adjoint_method import CUT_SHORT, AdjointMethod, check_fields, settled
from diffopt_implicit._linear_info import LinearSolveInfo, OnFailure
from diffopt_implicit._linear_system import MatVec, Tree, check_positive
from diffopt_implicit._neumann import solve_neumann
from diffopt_implicit._richardson import solve_fixed_point


@dataclass(frozen=True)
class Neumann(AdjointMethod):
    """The adjoint by a Neumann series: ``u = step_size sum_{j <= K} (I - step_size H)^j v``.

    Attributes:
        iterations: ``K``, how many powers beyond the first term.
        step_size: Positive, below 2 / the largest eigenvalue of the Hessian.
        ridge: Added to the Hessian's diagonal, at least 0.
        on_failure: What to do when the series ends further from the solution than it began,
            or NaN appears.

    Example:
        >>> Neumann(10, step_size=0.1)
        Neumann(iterations=10, step_size=0.1, ridge=0.0, on_failure='raise')

    Source:
        Lorraine, Vicol & Duvenaud, *Optimizing millions of hyperparameters by implicit
        differentiation*, AISTATS 2020, section 4.1, algorithm 3.
    """

    iterations: int = 10
    step_size: float | Tensor = 1.0
    ridge: float | Tensor = 0.0
    on_failure: OnFailure = "raise"

    def __post_init__(self) -> None:
        check_fields(self.on_failure, ridge=self.ridge, iterations=self.iterations)
        check_positive("step_size", self.step_size)

    def solve(
        self, matvec: MatVec, b: Tree, init: Tree | None
    ) -> tuple[Tree, LinearSolveInfo | None]:
        solved = solve_neumann(
            matvec,
            b,
            ridge=self.ridge,
            step_size=self.step_size,
            tol=0.0,
            maxiter=self.iterations + 1,
            info=True,
            on_failure="ignore",
        )
        return settled("Neumann", solved, self.on_failure, CUT_SHORT)


@dataclass(frozen=True)
class FixedPoint(AdjointMethod):
    """The adjoint by the iteration ``u <- u + step_size (v - H u)``, from zero or `init`.

    It is the adjoint of gradient descent on the inner loss at its end; from zero, `K` of these
    are ``Neumann(K - 1)``.

    Attributes:
        iterations: How many, at least 1.
        step_size: Positive, below 2 / the largest eigenvalue of the Hessian.
        ridge: Added to the Hessian's diagonal, at least 0.
        on_failure: As of `Neumann`.

    Example:
        >>> FixedPoint(10, step_size=0.1).iterations
        10

    Source:
        Grazzi, Franceschi, Pontil & Salzo, *On the iteration complexity of hypergradient
        computation*, ICML 2020, section 3.
    """

    iterations: int = 10
    step_size: float | Tensor = 1.0
    ridge: float | Tensor = 0.0
    on_failure: OnFailure = "raise"

    def __post_init__(self) -> None:
        check_fields(self.on_failure, ridge=self.ridge)
        check_positive("iterations", self.iterations)
        check_positive("step_size", self.step_size)

    def solve(
        self, matvec: MatVec, b: Tree, init: Tree | None
    ) -> tuple[Tree, LinearSolveInfo | None]:
        solved = solve_fixed_point(
            matvec,
            b,
            init=init,
            ridge=self.ridge,
            step_size=self.step_size,
            tol=0.0,
            maxiter=self.iterations,
            info=True,
            on_failure="ignore",
        )
        return settled("FixedPoint", solved, self.on_failure, CUT_SHORT)


@dataclass(frozen=True)
class OneStep(AdjointMethod):
    """The adjoint of the last step of gradient descent alone: ``u = step_size v``.

    No product with the Hessian. The error is the rate at which that descent converges, which
    is small where one step nearly solves the problem.

    Attributes:
        step_size: Positive, that of the descent.

    Example:
        >>> OneStep(0.1)
        OneStep(step_size=0.1)

    Source:
        Bolte, Pauwels & Vaiter, *One-step differentiation of iterative algorithms*, NeurIPS
        2023; as Jacobian-free backpropagation, Fung et al., AAAI 2022.
    """

    step_size: float | Tensor = 1.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)

    def solve(
        self, matvec: MatVec, b: Tree, init: Tree | None
    ) -> tuple[Tree, LinearSolveInfo | None]:
        return tree_map(lambda v: self.step_size * v, b), None


@dataclass(frozen=True)
class IdentityApprox(AdjointMethod):
    """The adjoint with the Hessian taken for the identity: ``u = v``.

    Example:
        >>> IdentityApprox()
        IdentityApprox()

    Source:
        Luketina, Berglund, Greff & Raiko, *Scalable gradient-based tuning of continuous
        regularization hyperparameters*, ICML 2016 (T1-T2).
    """

    def solve(
        self, matvec: MatVec, b: Tree, init: Tree | None
    ) -> tuple[Tree, LinearSolveInfo | None]:
        return b, None
