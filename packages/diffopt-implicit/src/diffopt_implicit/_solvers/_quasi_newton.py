"""BFGS: quasi-Newton minimization, with a dense or a limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._solvers._descent import Descent, Move, length
from diffopt_implicit._solvers._line_search import chosen


@dataclass(frozen=True)
class LBFGS(Descent):
    """Minimize by BFGS with limited memory: an inverse Hessian of the last steps alone.

    The inverse ``H`` of the last steps ``s`` and changes of the gradient ``y`` is applied in its
    compact form: a product with all of them, small triangular systems, and a product back. Its
    first value is ``gamma I``, with the ``gamma = s^T y / y^T y`` of the last pair.

    Attributes:
        fun: As of `Descent`: ``(params, *args, **kwargs) ->`` a scalar to minimize, smooth.
        linesearch: How to choose the step: `ZoomLineSearch` or another.
        has_aux: Whether `fun` returns ``(scalar, aux)``.
        history_size: How many pairs are kept, positive.
        tol: Stop where the Euclidean norm of the gradient, over all leaves, is at most this.

    Example:
        >>> import torch
        >>> def rosenbrock(x, scale):
        ...     return (1 - x[0]) ** 2 + scale * (x[1] - x[0] ** 2) ** 2
        >>> solver = LBFGS(rosenbrock, tol=1e-8)
        >>> x, state = solver.run(torch.zeros(2, dtype=torch.float64), 100.0)
        >>> x
        tensor([1.0000, 1.0000], dtype=torch.float64)

    Source:
        Byrd, Nocedal & Schnabel, *Representations of quasi-Newton matrices and their use in limited
        memory methods*, Math. Programming 63, 1994, eq. 3.1; Liu & Nocedal, ibid. 45, 1989.
    """

    history_size: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("history_size", self.history_size)

    def first_memory(self, x: Tensor) -> Tensor:
        """Return pairs of zeros, (2, history_size, elements), which say nothing."""
        return x.detach().new_zeros(2, self.history_size, x.shape[0])

    def direction(self, memory: Tensor, grad: Tensor) -> Tensor:
        """Return ``-H grad``."""
        return -inverse_product(memory, grad)

    def remembered(self, memory: Tensor, move: Move) -> Tensor:
        """Put the last pair in the place of the oldest, if it has curvature."""
        pair, curved = normalized_pair(move.step, move.change)
        return chosen(curved, torch.cat([memory[:, 1:], pair[:, None]], dim=1), memory)


def normalized_pair(step: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``s`` and ``y`` scaled to ``s^T y = 1``, and whether they have that curvature."""
    curvature = torch.dot(step, change)
    eps = torch.finfo(step.dtype).eps
    curved = curvature > eps * length(step) * length(change)
    # Scaled, so that the small matrices are of one size however short the last steps were.
    scale = torch.where(curved, curvature, 1.0).rsqrt()
    return scale * torch.stack([step, change]), curved


def inverse_product(pairs: Tensor, vector: Tensor, square: Tensor | None = None) -> Tensor:
    """Multiply with the inverse Hessian of normalized pairs, oldest first.

    Args:
        pairs: Steps and changes, (2, memory, elements); zeros say nothing.
        vector: What to multiply.
        square: ``y^T y`` of the newest pair, if that is not the last.
    """
    changes, rows = pairs[1], pairs.flatten(0, 1)
    memory = changes.shape[0]
    products = rows @ torch.cat([changes, vector[None]]).T
    squares, applied = products.split([memory, 1], dim=1)
    (upper, changes_changes), (along, across) = squares.split(memory), applied.split(memory)
    square = changes_changes[-1, -1] if square is None else square
    gamma = torch.where(square > 0, square, 1.0).reciprocal()
    # H = gamma I + [S gamma Y] [[R^-T (I + gamma Y^T Y) R^-1, -R^-T], [-R^-1, 0]] [S gamma Y]^T,
    # with the upper triangle R of S^T Y, whose diagonal is 1.
    solve = partial(torch.linalg.solve_triangular, unitriangular=True)
    once = solve(upper, along, upper=True)
    twice = solve(upper.mT, once + gamma * (changes_changes @ once - across), upper=False)
    shares = torch.cat([twice, -gamma * once])[:, 0]
    return gamma * vector + shares @ rows


@dataclass(frozen=True)
class BFGS(Descent):
    """Minimize by BFGS: an inverse Hessian learned from all steps, of ``n^2`` elements.

    ``H <- (I - rho s y^T) H (I - rho y s^T) + rho s s^T``, ``rho = 1 / s^T y``, for the steps ``s``
    and changes of the gradient ``y``; ``H`` begins as ``s^T y / y^T y`` times the identity.

    Attributes:
        fun: As of `LBFGS`.
        linesearch: As of `LBFGS`.
        has_aux: As of `LBFGS`.
        tol: As of `LBFGS`.

    Example:
        >>> import torch
        >>> target = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> solver = BFGS(lambda x, target: (x - target).square().sum())
        >>> x = solver.run(torch.zeros(2), target).params
        >>> torch.autograd.grad(x.sum(), target)
        (tensor([1., 1.]),)

    Source:
        Nocedal & Wright, *Numerical Optimization*, 2006, algorithm 6.1 and eq. 6.20.
    """

    def first_memory(self, x: Tensor) -> Tensor:
        """Return zeros, which stand for an identity of unknown size."""
        return x.detach().new_zeros(x.shape[0], x.shape[0])

    def direction(self, memory: Tensor, grad: Tensor) -> Tensor:
        """Return ``-H grad``."""
        known = memory.diagonal().sum() != 0
        return -torch.where(known, memory @ grad, grad)

    def remembered(self, memory: Tensor, move: Move) -> Tensor:
        """Return the inverse Hessian after a step, if that has curvature."""
        (s, y), curved = normalized_pair(move.step, move.change)
        square = torch.dot(y, y)
        gamma = torch.where(square > 0, square, 1.0).reciprocal()
        identity = torch.eye(s.shape[0], dtype=s.dtype, device=s.device)
        h = torch.where(memory.diagonal().sum() != 0, memory, gamma * identity)
        hy = h @ y
        outer = torch.outer(s, hy)
        updated = h - outer - outer.mT + (1 + torch.dot(y, hy)) * torch.outer(s, s)
        return torch.where(curved, updated, memory)
