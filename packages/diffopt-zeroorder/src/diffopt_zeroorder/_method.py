"""Estimators of gradients from values: each a frozen value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Value = Callable[[Tensors], Tensor]
Noise = Callable[[], Tensors]


class Method(ABC):
    """How values of a function at random points become its gradient.

    Example:
        >>> isinstance(Antithetic(), Method)
        True
    """

    @abstractmethod
    def gradient(
        self, value: Value, x: Tensors, noise: Noise, sigma: float, num_samples: int
    ) -> Tensors:
        """Estimate the gradient of `value` at `x`.

        Args:
            value: The function, from tensors shaped like `x` to a scalar.
            x: Where the gradient is wanted.
            noise: Draws directions shaped like `x`, of mean 0 and variance 1.
            sigma: How far along a direction to go, positive.
            num_samples: How many directions to draw, at least 1.

        Returns:
            Tensors shaped like `x`.
        """


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
        self, value: Value, x: Tensors, noise: Noise, sigma: float, num_samples: int
    ) -> Tensors:
        """Estimate the gradient of `value` at `x`; see `Method.gradient`."""
        total = [torch.zeros_like(leaf) for leaf in x]
        for _ in range(num_samples):
            z = noise()
            ahead = value(tuple(leaf + sigma * d for leaf, d in zip(x, z, strict=True)))
            behind = value(tuple(leaf - sigma * d for leaf, d in zip(x, z, strict=True)))
            slope = (ahead - behind) / (2 * sigma * num_samples)
            for leaf, d in zip(total, z, strict=True):
                leaf += (slope * d).to(leaf.dtype)
        return tuple(total)


METHODS: dict[str, Method] = {"antithetic": Antithetic()}


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
