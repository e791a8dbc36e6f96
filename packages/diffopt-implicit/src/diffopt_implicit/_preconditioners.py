"""Preconditioners as values: prepared for a matrix by the solver that is given one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import MatVec, Tree, VectorMap, check_positive
from diffopt_implicit._operator import Operator
from diffopt_implicit._torch import outside_graphs


class Preconditioner(ABC):
    """A recipe for an ``M`` near the inverse of ``A + ridge I``, symmetric positive definite.

    Passed as ``preconditioner=`` it is prepared at each solve. Where the matrix changes little
    from one solve to the next, prepare it once and pass what `prepare` returns.

    Example:
        >>> import torch
        >>> from diffopt_implicit import solve_cg
        >>> d = torch.logspace(0, 4, 50)
        >>> solve = lambda m: solve_cg(lambda x: d * x, torch.ones(50), preconditioner=m, info=True)
        >>> solve(JacobiPreconditioner())[1].iterations
        tensor(1)
    """

    @outside_graphs
    def prepare(self, matvec: MatVec, b: Tree, ridge: float | Tensor = 0.0) -> MatVec:
        """Return ``r -> M r`` for a matrix.

        Args:
            matvec: The product ``x -> A x``, of operations that `torch.func.vmap` knows; `A`
                symmetric positive semidefinite.
            b: Any tree of real floating-point tensors that `matvec` takes.
            ridge: Added to the diagonal of ``A``, at least 0.

        Returns:
            A function of trees like `b`.
        """
        space = Coordinates.of(b, "`b`")
        device = space.vector(b, "`b`").device
        with torch.no_grad():  # the solution does not depend on it
            inverse = self.on_vectors(Operator(matvec, space), space, device, ridge)
        return lambda r: space.tree(inverse(space.vector(r, "What is preconditioned")))

    @abstractmethod
    def on_vectors(
        self, operator: VectorMap, space: Coordinates, device: torch.device, ridge: float | Tensor
    ) -> VectorMap:
        """Return ``r -> M r`` on vectors of ``space.size`` elements."""


@dataclass(frozen=True)
class JacobiPreconditioner(Preconditioner):
    """The inverse of the diagonal, written out or estimated.

    Attributes:
        probes: None for the exact diagonal, by one product for each element; or how many
            products with random signs ``z`` to estimate it by, as the mean of ``z * A z``.
        seed: Of the signs.

    Example:
        >>> import torch
        >>> d = torch.tensor([1.0, 4.0])
        >>> JacobiPreconditioner().prepare(lambda x: d * x, d)(torch.ones(2))
        tensor([1.0000, 0.2500])

    Source:
        Bekas, Kokiopoulou & Saad, *An estimator for the diagonal of a matrix*, Appl. Numer.
        Math. 57, 2007, eq. 2.
    """

    probes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes is not None:
            check_positive("probes", self.probes)

    def on_vectors(
        self, operator: VectorMap, space: Coordinates, device: torch.device, ridge: float | Tensor
    ) -> VectorMap:
        """Divide by the absolute diagonal."""
        if space.size == 0:
            return lambda r: r
        if self.probes is None:
            z = torch.eye(space.size, dtype=space.working, device=device)
            diagonal = torch.func.vmap(lambda z: torch.dot(z, operator(z)), chunk_size=64)(z)
        else:
            z = signs(self.probes, space.size, self.seed, device).to(space.working)
            diagonal = (z * torch.func.vmap(operator)(z)).mean(0)
        # Its absolute value, so that M stays positive; where that is 0, there is nothing to know.
        divisor = (diagonal + ridge).abs()
        divisor = torch.where(divisor > 0, divisor, 1.0)
        return lambda r: r / divisor


@dataclass(frozen=True)
class NystromPreconditioner(Preconditioner):
    """The inverse of the largest eigenvalues, found by products with a few random vectors.

    For ``A`` near ``U diag(d) U^T`` of the given rank, with ``d`` falling to ``d_r``::

        M = (d_r + ridge) U diag(1 / (d + ridge)) U^T + (I - U U^T)

    Conjugate gradients then see a condition number of about ``(d_r + ridge) / ridge``.

    Attributes:
        rank: How many products, all at once, positive.
        seed: Of the random vectors.

    Example:
        >>> NystromPreconditioner(20)
        NystromPreconditioner(rank=20, seed=0)

    Source:
        Frangella, Tropp & Udell, *Randomized Nyström preconditioning*, SIAM J. Matrix Anal.
        Appl. 44, 2023, algorithm 2.1 and eq. 5.3.
    """

    rank: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive("rank", self.rank)

    def on_vectors(
        self, operator: VectorMap, space: Coordinates, device: torch.device, ridge: float | Tensor
    ) -> VectorMap:
        """Find the eigenvalues and divide by them."""
        count = min(self.rank, space.size)
        if count == 0:
            return lambda r: r
        test = signs(count, space.size, self.seed, device).to(space.working)
        test = torch.linalg.qr(test.mT)[0]
        image = torch.func.vmap(operator, in_dims=1, out_dims=1)(test)
        # A small shift, taken off again below, keeps the middle matrix positive definite.
        shift = torch.finfo(space.working).eps * torch.linalg.matrix_norm(image)
        image = image + shift * test
        middle = test.mT @ image
        values, basis = torch.linalg.eigh(0.5 * (middle + middle.mT))
        root = values.clamp(min=0).sqrt()
        used = root > torch.finfo(space.working).eps * root.amax()
        factor = image @ torch.where(used, basis / torch.where(used, root, 1.0), 0.0)
        u, singular, _ = torch.linalg.svd(factor, full_matrices=False)
        d = (singular**2 - shift).clamp(min=0) + ridge
        d = torch.where(d > 0, d, 1.0)
        weight = d.amin() / d - 1
        return lambda r: r + u @ (weight * (u.mT @ r))


def prepared(
    preconditioner: MatVec | Preconditioner | None, matvec: MatVec, b: Tree, ridge: float | Tensor
) -> MatVec | None:
    """Return a preconditioner for this matrix as a function."""
    if isinstance(preconditioner, Preconditioner):
        return preconditioner.prepare(matvec, b, ridge)
    return preconditioner


def signs(rows: int, columns: int, seed: int, device: torch.device) -> Tensor:
    """Return random signs, the same on every device and for every example of a `vmap`."""
    # Not `torch.randint`, which `torch.func.vmap` refuses: a hash of the place (the finalizer
    # of SplitMix64, Steele, Lea & Flood, OOPSLA 2014).
    x = torch.arange(rows * columns, device=device) + (seed + 1) * 0x9E3779B97F4A7C1
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (((x >> 40) & 1) * 2 - 1).reshape(rows, columns)
