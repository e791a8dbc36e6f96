"""Solvers whose iterates have no derivatives."""

from __future__ import annotations

from diffopt_implicit._solvers._adjoints import Implicit, chosen_adjoint
from diffopt_implicit._solvers._solver import Solver


def check_implicit(solver: Solver) -> None:
    """Refuse to differentiate iterations that only compare values, or leave torch."""
    if not isinstance(chosen_adjoint(solver.adjoint), Implicit):
        raise ValueError(
            f"The iterates of `{type(solver).__name__}` have no derivatives, and their limit has: "
            f"`adjoint` must be 'implicit' or an `Implicit`, got {solver.adjoint!r}."
        )
