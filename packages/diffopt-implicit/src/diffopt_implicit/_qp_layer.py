"""A layer that solves a quadratic program."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from diffopt_implicit._batches import over_batches
from diffopt_implicit._kkt import KKTSolution
from diffopt_implicit._solvers._splitting_solvers import OSQP


class QPLayer(nn.Module):
    """Minimize ``x^T Q x / 2 + q^T x`` with ``G x <= h`` and ``A x = b``, for a batch.

    The programs of a batch are solved together, each until it has converged, and differentiated
    in all that is given by the system of the active constraints; see `OSQP`.

    Args:
        solver: How to solve, and what to do about programs without a solution; default
            ``OSQP()``, which raises.

    Example:
        >>> import torch
        >>> layer = QPLayer()
        >>> q = torch.tensor([[0.0, -0.5], [-0.2, 0.2]], requires_grad=True)
        >>> G, h = -torch.eye(2), torch.zeros(2)  # x >= 0
        >>> A, b = torch.ones(1, 2), torch.ones(1)  # sum x = 1
        >>> layer(torch.eye(2), q, G, h, A, b)
        tensor([[0.2500, 0.7500],
                [0.7000, 0.3000]], grad_fn=...)

    Source:
        Amos & Kolter, *OptNet: differentiable optimization as a layer in neural networks*, ICML
        2017.
    """

    def __init__(self, solver: OSQP | None = None) -> None:
        super().__init__()
        self.solver = OSQP() if solver is None else solver

    def forward(
        self,
        Q: Tensor,
        q: Tensor,
        G: Tensor | None = None,
        h: Tensor | None = None,
        A: Tensor | None = None,
        b: Tensor | None = None,
    ) -> Tensor:
        """Solve.

        Args:
            Q: Of the shape ``(..., n, n)``, positive semidefinite.
            q: Of the shape ``(..., n)``.
            G: Of the shape ``(..., m, n)``, or None.
            h: Of the shape ``(..., m)``, or None; may be infinite.
            A: Of the shape ``(..., p, n)``, or None.
            b: Of the shape ``(..., p)``, or None.

        Returns:
            The minima, of the shape ``(..., n)``, all dimensions in front broadcast.

        Raises:
            SolverError: If a program has no feasible point, or falls for ever.
            ValueError: If `G` is given without `h`, `A` without `b`, if a ``Q`` is not positive
                semidefinite, or shapes do not fit.
        """
        return solve_batch(self.solver, Q, q, G, h, A, b).primal


def solve_batch(
    solver: OSQP,
    Q: Tensor,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
) -> KKTSolution:
    """Solve programs of any dimensions in front."""
    if (G is None) != (h is None) or (A is None) != (b is None):
        raise ValueError("`G` is given with `h`, and `A` with `b`, or neither of both.")
    optional = [(G, 2), (h, 1), (A, 2), (b, 1)]
    tensors = [(t, rank) for t, rank in optional if t is not None]
    core = partial(solve_one, solver, G is not None, A is not None)
    return over_batches(
        core, (Q, q, *(t for t, _ in tensors)), (2, 1, *(rank for _, rank in tensors))
    )


def solve_one(
    solver: OSQP, has_G: bool, has_A: bool, Q: Tensor, q: Tensor, *rest: Tensor
) -> KKTSolution:
    """Solve one program."""
    inequalities, equations = rest[:2] if has_G else None, rest[-2:] if has_A else None
    return solver.run(None, (Q, q), equations, inequalities).params
