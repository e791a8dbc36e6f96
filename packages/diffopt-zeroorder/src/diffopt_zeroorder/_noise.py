"""Noise that is given by a seed, so that it can be drawn again instead of being held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

Tensors = tuple[Tensor, ...]
Noise = Callable[[], Tensors]


class Sampler(Protocol):
    """Draws a tensor of independent numbers of mean 0 and variance 1.

    Example:
        >>> import torch
        >>> def signs(shape, *, dtype, device, generator):
        ...     bits = torch.randint(2, shape, device=device, generator=generator)
        ...     return (2 * bits - 1).to(dtype)
    """

    def __call__(
        self,
        shape: torch.Size,
        *,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
    ) -> Tensor:
        """Draw a tensor of this shape."""
        ...


def sampler_of(distribution: Distribution | Sampler | None) -> Sampler:
    """Return the sampler for what the user gave as distribution."""
    if distribution is None:
        return standard_normal
    if isinstance(distribution, Distribution):
        return standardized(distribution)
    if not callable(distribution):
        raise TypeError(
            "`distribution` must be None, a `torch.distributions.Distribution`, or a callable "
            f"`(shape, *, dtype, device, generator) -> Tensor`, got {type(distribution).__name__}."
        )
    return distribution


def standard_normal(
    shape: torch.Size, *, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Draw from the standard normal distribution."""
    return torch.randn(shape, dtype=dtype, device=device, generator=generator)


def signs(
    shape: torch.Size, *, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Tensor:
    """Draw -1 and 1, equally likely."""
    bits = torch.randint(2, shape, device=device, generator=generator)
    return (2 * bits - 1).to(dtype)


def standardized(distribution: Distribution) -> Sampler:
    """Return a sampler of `distribution`, shifted and scaled to mean 0 and variance 1."""
    if distribution.batch_shape or distribution.event_shape:
        raise ValueError(
            "`distribution` must be of single numbers, which are drawn independently; got "
            f"batch shape {tuple(distribution.batch_shape)} and event shape "
            f"{tuple(distribution.event_shape)}."
        )
    mean, variance = float(distribution.mean), float(distribution.variance)
    if not 0 < variance < float("inf"):
        raise ValueError(
            "`distribution` must have a positive finite variance, by which the noise is scaled "
            f"to 1; that of {distribution} is {variance}."
        )

    def sampler(
        shape: torch.Size, *, dtype: torch.dtype, device: torch.device, generator: torch.Generator
    ) -> Tensor:
        seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
        with global_seed(int(seed), distribution.mean.device):
            drawn = distribution.sample(shape)
        return ((drawn - mean) / variance**0.5).to(dtype=dtype, device=device)

    return sampler


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generator of a device, the only one distributions use, and restore it."""
    if device.type == "cpu":
        # `torch.manual_seed` would seed all devices, which nobody restores.
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            yield
    else:
        module = torch.get_device_module(device)
        with torch.random.fork_rng([device.index], device_type=device.type), module.device(device):
            module.manual_seed(seed)
            yield


def draw_seed(generator: torch.Generator | None) -> Tensor:
    """Draw the seed of one call from `generator`, or from torch's global one."""
    if generator is None:
        return torch.randint(2**63 - 1, ())
    return torch.randint(2**63 - 1, (), generator=generator, device=generator.device)


def noise_like(x: Tensors, sampler: Sampler, seed: Tensor) -> Noise:
    """Return a function that draws directions shaped like `x`, one after the other."""
    generators = {
        device: torch.Generator(device).manual_seed(int(seed))
        for device in dict.fromkeys(leaf.device for leaf in x)
    }

    def draw() -> Tensors:
        return tuple(
            checked(
                sampler(
                    leaf.shape,
                    dtype=leaf.dtype,
                    device=leaf.device,
                    generator=generators[leaf.device],
                ),
                leaf,
            )
            for leaf in x
        )

    return draw


def checked(noise: object, leaf: Tensor) -> Tensor:
    """Refuse noise of another shape than the leaf's."""
    if not isinstance(noise, Tensor) or noise.shape != leaf.shape:
        got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(
            f"`distribution` must return a tensor of the shape {tuple(leaf.shape)} that it is "
            f"called with, got {got}."
        )
    return noise
