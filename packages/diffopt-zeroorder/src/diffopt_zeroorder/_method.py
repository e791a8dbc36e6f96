"""Estimators of gradients from values: each a frozen value."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, tee
from typing import ClassVar

import torch
from torch import Tensor

from diffopt_zeroorder._noise import Noise, Sampler, Tensors, signs, standard_normal

Values = Callable[[Iterable[Tensors]], Iterator[Tensor]]

# NOTE [lazy directions]
# Directions, points and values are iterators, and a direction is used twice: for its points, and,
# weighted by their values, in the sum. `tee` holds it from the first use to the second. So one
# direction is in memory at a time, unless all values are needed before the first weight is known.


class Method(ABC):
    """How values of a function at chosen points become its gradient.

    Attributes:
        sampler: The only sampler that the method works with, None if any does.

    Example:
        >>> isinstance(Antithetic(), Method)
        True
    """

    sampler: ClassVar[Sampler | None] = None

    @abstractmethod
    def gradient(
        self, values: Values, x: Tensors, noise: Noise, sigma: float, num_samples: int
    ) -> Tensors:
        """Estimate the gradient of a function at `x`.

        Args:
            values: Yields the scalar values of the function at points shaped like `x`, in their
                order. Called once, with all points.
            x: Where the gradient is wanted.
            noise: Draws directions shaped like `x`, of mean 0 and variance 1.
            sigma: How far along a direction to go, positive.
            num_samples: How many directions to draw, at least 1.

        Returns:
            Tensors shaped like `x`.
        """


@dataclass(frozen=True)
class Naive(Method):
    """Weigh each direction by the value at its end: the score function estimator.

    With ``z_i`` of mean 0 and covariance 1, and a baseline ``b_i`` independent of ``z_i``::

        g = 1 / (N sigma) * sum_i (f(x + sigma z_i) - b_i) * z_i

    Its mean is that of `Antithetic`, whatever the baseline; its variance has a term of about
    ``(f - b)^2 / (N sigma^2)``, without bound as `sigma` shrinks if ``b`` is not near ``f(x)``.
    So the baseline is by default the mean of ``f(x)`` and the values at the other ``N - 1``
    points; then ``f = a.x`` has the variance ``(|a|^2 + a_i^2) (1 + (N - 1) / N^2) / N``. It
    takes ``N + 1`` values of ``f``, and ``N`` with a baseline that is given.

    Attributes:
        baseline: A number to subtract from all values, 0 for the estimator of the textbooks. None
            is the mean just told.

    Example:
        >>> Naive(baseline=0.0)
        Naive(baseline=0.0)

    Source:
        Williams, *Simple statistical gradient-following algorithms for connectionist
        reinforcement learning*, Machine Learning 8, 1992; Wierstra, Schaul, Glasmachers, Sun,
        Peters & Schmidhuber, *Natural evolution strategies*, JMLR 15, 2014, section 2. The mean
        of the other samples as baseline: Kool, van Hoof & Welling, *Buy 4 REINFORCE samples, get
        a baseline for free!*, ICLR 2019 workshop; here ``f(x)`` is one sample more.
    """

    baseline: float | None = None

    def __post_init__(self) -> None:
        if self.baseline is not None and not math.isfinite(self.baseline):
            raise ValueError(f"`baseline` must be None or a finite number, got {self.baseline}.")

    def gradient(
        self, values: Values, x: Tensors, noise: Noise, sigma: float, num_samples: int
    ) -> Tensors:
        """Estimate the gradient at `x`; see `Method.gradient`."""
        first, second = tee(drawn(noise, num_samples))
        ends = (moved(x, z, sigma) for z in first)
        if self.baseline is None:
            here, *there = values(chain([x], ends))
            # The baseline from differences, so that a constant gives exactly zero.
            excess = torch.stack(there) - here
            excess = excess - (excess.sum() - excess) / num_samples
            weights = iter(excess / (sigma * num_samples))
        else:
            weights = ((f - self.baseline) / (sigma * num_samples) for f in values(ends))
        return weighted_sum(x, second, weights)


@dataclass(frozen=True)
class Forward(Method):
    """Compare the value at one end of each direction with that at its start.

    With ``z_i`` of mean 0 and covariance 1::

        g = 1 / (N sigma) * sum_i (f(x + sigma z_i) - f(x)) * z_i

    Its mean is that of `Antithetic`. It is zero for a constant ``f``, and for ``f = a.x`` it is
    the same; a curved ``f`` adds to its variance. It takes ``N + 1`` values of ``f``.

    Example:
        >>> Forward()
        Forward()

    Source:
        Nesterov & Spokoiny, *Random gradient-free minimization of convex functions*, Found.
        Comput. Math. 17, 2017, section 2.
    """

    def gradient(
        self, values: Values, x: Tensors, noise: Noise, sigma: float, num_samples: int
    ) -> Tensors:
        """Estimate the gradient at `x`; see `Method.gradient`."""
        first, second = tee(drawn(noise, num_samples))
        there = values(chain([x], (moved(x, z, sigma) for z in first)))
        here = next(there)
        return weighted_sum(x, second, ((f - here) / (sigma * num_samples) for f in there))


@dataclass(frozen=True)
class Antithetic(Method):
    """Compare the values at both ends of each direction.

    With ``z_i`` of mean 0 and covariance 1::

        g = 1 / (N sigma) * sum_i (f(x + sigma z_i) - f(x - sigma z_i)) / 2 * z_i

    For Gaussian ``z`` its mean is the gradient of ``E f(x + sigma z)``. It is zero for a
    constant ``f``, does not depend on `sigma` for a quadratic one, and for ``f = a.x`` has
    variance ``(|a|^2 + a_i^2) / N``. It takes ``2 N`` values of ``f``.

    Example:
        >>> Antithetic()
        Antithetic()

    Source:
        Geweke, *Antithetic acceleration of Monte Carlo integration in Bayesian inference*,
        J. Econometrics 38, 1988; Salimans, Ho, Chen, Sidor & Sutskever, *Evolution strategies
        as a scalable alternative to reinforcement learning*, arXiv 1703.03864, section 2.
    """

    def gradient(
        self, values: Values, x: Tensors, noise: Noise, sigma: float, num_samples: int
    ) -> Tensors:
        """Estimate the gradient at `x`; see `Method.gradient`."""
        return paired(values, x, drawn(noise, num_samples), sigma, 1 / num_samples)


@dataclass(frozen=True)
class SPSA(Method):
    """Compare the values at both ends of directions of signs: `Antithetic` with ``z = +-1``.

    Simultaneous perturbation divides by ``z`` where `Antithetic` multiplies, which for signs is
    the same. For ``f = a.x`` its variance is ``(|a|^2 - a_i^2) / N``, the least of all directions
    of independent numbers. It takes ``2 N`` values of ``f``, and no other distribution: for
    others, `Antithetic` is the estimator that has the right mean.

    Example:
        >>> SPSA()
        SPSA()

    Source:
        Spall, *Multivariate stochastic approximation using a simultaneous perturbation gradient
        approximation*, IEEE Trans. Automatic Control 37, 1992, eq. 2.2.
    """

    sampler: ClassVar[Sampler | None] = staticmethod(signs)

    def gradient(
        self, values: Values, x: Tensors, noise: Noise, sigma: float, num_samples: int
    ) -> Tensors:
        """Estimate the gradient at `x`; see `Method.gradient`."""
        return paired(values, x, drawn(noise, num_samples), sigma, 1 / num_samples)


@dataclass(frozen=True)
class Orthogonal(Method):
    """Compare the values at both ends of directions that are orthogonal to one another.

    Directions come in blocks of as many as `x` has elements, ``d``, the last block with what is
    left. Those of a block are orthogonal, uniform in angle, and of the length ``sqrt(d)``, so that
    their covariance is 1. For ``f = a.x`` the variance, summed over the elements, is
    ``(d / N - 1) |a|^2`` for ``N <= d``, and with ``N`` a multiple of ``d`` the gradient is exact.
    It takes ``2 N`` values of ``f``, and holds a block of directions in memory.

    Example:
        >>> Orthogonal()
        Orthogonal()

    Source:
        Choromanski, Rowland, Sindhwani, Turner & Weller, *Structured evolution with compact
        architectures for scalable policy optimization*, ICML 2018, section 3.
    """

    sampler: ClassVar[Sampler | None] = staticmethod(standard_normal)

    def gradient(
        self, values: Values, x: Tensors, noise: Noise, sigma: float, num_samples: int
    ) -> Tensors:
        """Estimate the gradient at `x`; see `Method.gradient`."""
        directions = orthogonalized(drawn(noise, num_samples), x)
        return paired(values, x, directions, sigma, 1 / num_samples)


@dataclass(frozen=True)
class Central(Method):
    """Compare the values on both sides along each coordinate: central differences, not random.

    For each element ``i`` of ``x``, with its unit vector ``e_i``::

        g_i = (f(x + sigma e_i) - f(x - sigma e_i)) / (2 sigma)

    It is exact for a quadratic ``f``, and else of an error of order ``sigma^2``. It takes ``2 d``
    values of ``f`` for ``d`` elements. `sigma` must be small, but not so small that the
    difference is lost in rounding: 1e-5 suits float64 values of order 1, and 1e-2 float32.

    Example:
        >>> Central()
        Central()

    Source:
        Nocedal & Wright, *Numerical optimization*, 2nd edition, Springer 2006, eq. 8.7.
    """

    # It draws nothing, so another distribution is an error.
    sampler: ClassVar[Sampler | None] = staticmethod(standard_normal)

    def gradient(
        self, values: Values, x: Tensors, noise: Noise, sigma: float, num_samples: int
    ) -> Tensors:
        """Return the differences at `x`; see `Method.gradient`."""
        return paired(values, x, unit_vectors(x), sigma, 1.0)


def drawn(noise: Noise, num_samples: int) -> Iterator[Tensors]:
    """Draw that many directions, each when it is asked for."""
    return (noise() for _ in range(num_samples))


def moved(x: Tensors, z: Tensors, step: float) -> Tensors:
    """Go a step from `x` along a direction."""
    return tuple(leaf + step * d for leaf, d in zip(x, z, strict=True))


def paired(
    values: Values, x: Tensors, directions: Iterable[Tensors], sigma: float, weight: float
) -> Tensors:
    """Sum the directions, each times the slope of the values between its ends, and `weight`."""
    first, second = tee(directions)
    ends = values(moved(x, z, step) for z in first for step in (sigma, -sigma))
    # One iterator twice: each pair is taken from it in turn.
    slopes = ((ahead - behind) / (2 * sigma) for ahead, behind in zip(ends, ends, strict=True))
    return weighted_sum(x, second, (weight * slope for slope in slopes))


def weighted_sum(x: Tensors, directions: Iterable[Tensors], weights: Iterable[Tensor]) -> Tensors:
    """Sum weighted directions in float32 at least, to tensors like `x`."""
    total = [leaf.new_zeros(leaf.shape, dtype=at_least_float32(leaf)) for leaf in x]
    for z, weight in zip(directions, weights, strict=True):
        for leaf, d in zip(total, z, strict=True):
            leaf += weight * d
    return tuple(leaf.to(like.dtype) for leaf, like in zip(total, x, strict=True))


def at_least_float32(leaf: Tensor) -> torch.dtype:
    """Return the dtype to calculate with: half precision loses sums and has no QR."""
    return torch.promote_types(leaf.dtype, torch.float32)


def orthogonalized(directions: Iterator[Tensors], x: Tensors) -> Iterator[Tensors]:
    """Make normal directions orthogonal and of equal length, block by block; `Orthogonal`."""
    size = sum(leaf.numel() for leaf in x)
    while block := [flat(z) for _, z in zip(range(size), directions, strict=False)]:
        # A sign of a column that QR chooses does not matter, as both ends of it are visited.
        columns = torch.linalg.qr(torch.stack(block, 1)).Q
        for column in columns.unbind(1):
            yield like(size**0.5 * column, x)


def flat(tensors: Tensors) -> Tensor:
    """Return all elements as one vector."""
    device = tensors[0].device
    return torch.cat([t.reshape(-1).to(device, at_least_float32(t)) for t in tensors])


def like(vector: Tensor, x: Tensors) -> Tensors:
    """Undo `flat`."""
    parts = vector.split([leaf.numel() for leaf in x])
    return tuple(part.view(leaf.shape).to(leaf) for part, leaf in zip(parts, x, strict=True))


def unit_vectors(x: Tensors) -> Iterator[Tensors]:
    """Go through the unit vectors of all elements of `x`."""
    for i, leaf in enumerate(x):
        for k in range(leaf.numel()):
            z = tuple(torch.zeros_like(other) for other in x)
            z[i].view(-1)[k] = 1
            yield z


METHODS: dict[str, Method] = {
    "naive": Naive(),
    "forward": Forward(),
    "antithetic": Antithetic(),
    "spsa": SPSA(),
    "central": Central(),
    "orthogonal": Orthogonal(),
}


def method_of(method: str | Method) -> Method:
    """Return the method that a shorthand stands for."""
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ValueError(
            f"`method` must be a method, such as `Antithetic()`, or one of "
            f"{sorted(METHODS)}, got {method!r}."
        )
    return METHODS[method]
