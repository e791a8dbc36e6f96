"""Perturbed optimizers: the mean of a function under noise, and its exact kind of gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Gumbel, Normal

from diffopt_zeroorder._black_box import loop, outside_graphs
from diffopt_zeroorder._decorator import check_num_samples
from diffopt_zeroorder._dice import dice
from diffopt_zeroorder._evaluate import as_tensor
from diffopt_zeroorder._noise import draw_seed, global_seed
from diffopt_zeroorder._sigma import checked_sigma

# Made where they are used: the first one that is made lets torch import for half a second.
NOISES: dict[str, Any] = {"normal": Normal, "gumbel": Gumbel}


class Values(torch.autograd.Function):
    """The values of a function at stacked points, as constants; see NOTE [two functions]."""

    @staticmethod
    def forward(fun: Callable[[Tensor], Any], points: Tensor) -> tuple[Tensor]:
        return (torch.stack([as_tensor(fun(point), point) for point in points]),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return loop(Values, info.batch_size, in_dims, args)


@dataclass(frozen=True)
class Sampled:
    """A function at random points around its argument."""

    fun: Callable[[Tensor], Any]
    num_samples: int
    sigma: float | Tensor
    noise: str
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        checked_sigma(self.sigma)
        if self.noise not in NOISES:
            raise ValueError(f"`noise` must be one of {sorted(NOISES)}, got {self.noise!r}.")
        check_num_samples(self.num_samples, 2)

    @property
    def step(self) -> float:
        """How far the noise goes."""
        return float(self.sigma)

    def __call__(self, x: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        """Return noise, stacked along a new first dimension, and the values there."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"A perturbed function takes a floating-point tensor, got {got}.")
        start = x.detach()
        with global_seed(int(draw_seed(self.generator)), torch.device("cpu")):
            z = NOISES[self.noise](0.0, 1.0).sample((self.num_samples, *start.shape)).to(start)
        return z, Values.apply(self.fun, start + self.step * z)

    def mean(self, x: Tensor, z: Tensor, values: Tensor) -> Tensor:
        """Return the mean of the values, with its derivatives."""
        # The density of the points, that do not move with `x`, under the law that does.
        law = NOISES[self.noise](0.0, 1.0)
        log_prob = law.log_prob(z + (x.detach() - x) / self.step).reshape(len(z), -1).sum(1)
        others = (values.sum(0) - values) / (len(z) - 1)
        box = dice(log_prob).reshape(-1, *[1] * (values.dim() - 1))
        return (box * values - (box - 1) * others).mean(0)


def make_perturbed_fun(
    fun: Callable[[Tensor], Any],
    num_samples: int = 1000,
    sigma: float | Tensor = 0.1,
    noise: str = "gumbel",
    generator: torch.Generator | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return the mean of a function under noise, as a differentiable function.

    With noise ``z_i`` of density ``p``, drawn anew at each call::

        F(x) = 1 / N * sum_i f(x + sigma z_i)

    an estimate of ``E f(x + sigma z)``. Its derivatives, of any order, are unbiased estimates of
    those of the mean, made with `dice` from the values of ``f`` alone, which may be piecewise
    constant; the first one has the mean of the other values as its control variate.

    Args:
        fun: Takes a tensor like ``x`` and returns a tensor, array or number, of any shape, the
            same at each call. It runs without a graph, once for each sample.
        num_samples: The number ``N`` of samples, at least 2.
        sigma: The scale of the noise, positive.
        noise: The law of each element of ``z``: ``"gumbel"`` or ``"normal"``.
        generator: Where the seed of a call comes from. Default: torch's global generator.

    Returns:
        A function of a floating-point tensor ``x``, to a tensor of the shape of `fun`'s value.
        Works in autograd and in `torch.func.grad`, `vjp`, `jacrev`, nested too.

    Raises:
        ValueError: For arguments out of range.
        TypeError: When called with anything but a floating-point tensor.

    Example:
        >>> import torch
        >>> smoothed = make_perturbed_fun(lambda x: (x > 0).sum(), sigma=0.5, noise="normal")
        >>> x = torch.zeros(2, requires_grad=True)
        >>> smoothed(x).backward()
        >>> bool((x.grad > 0.5).all())  # 1 / (0.5 * sqrt(2 pi)) = 0.80
        True

    Source:
        Abernethy, Lee & Tewari, *Perturbation techniques in online learning and optimization*,
        2016, lemma 1.5; Berthet, Blondel, Teboul, Cuturi, Vert & Bach, *Learning with
        differentiable perturbed optimizers*, NeurIPS 2020, proposition 3.1.
    """
    sampled = Sampled(fun, num_samples, sigma, noise, generator)

    @outside_graphs
    def perturbed(x: Tensor) -> Tensor:
        z, (values,) = sampled(x)
        return sampled.mean(x, z, values)

    return perturbed


def make_perturbed_argmax(
    argmax_fun: Callable[[Tensor], Any],
    num_samples: int = 1000,
    sigma: float | Tensor = 0.1,
    noise: str = "gumbel",
    generator: torch.Generator | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return the mean of a maximizer under noise: a differentiable one.

    The maximizer ``argmax_fun(x)`` of ``<y, x>`` over a finite set or polytope of ``y``, such as
    the one-hot vector of the largest element, a sorting, a shortest path with negative costs, is
    piecewise constant; its mean under noise is smooth. With Gumbel noise the mean of the one-hot
    vector is ``softmax(x / sigma)``.

    Args:
        argmax_fun: Takes a tensor like ``x`` and returns the maximizer.
        num_samples: As in `make_perturbed_fun`.
        sigma: As there.
        noise: As there.
        generator: As there.

    Returns:
        `make_perturbed_fun` of `argmax_fun`.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> import torch
        >>> def largest(x):
        ...     return torch.nn.functional.one_hot(x.argmax(), len(x))
        >>> x = torch.tensor([1.0, 2.0, 1.5])
        >>> soft = make_perturbed_argmax(largest, sigma=1.0, generator=torch.Generator())(x)
        >>> bool((soft - x.softmax(0)).abs().max() < 0.1)
        True

    Source:
        Berthet et al., *Learning with differentiable perturbed optimizers*, NeurIPS 2020,
        definition 2.1 and proposition 3.1.
    """
    return make_perturbed_fun(argmax_fun, num_samples, sigma, noise, generator)


def make_perturbed_max(
    argmax_fun: Callable[[Tensor], Any],
    num_samples: int = 1000,
    sigma: float | Tensor = 0.1,
    noise: str = "gumbel",
    generator: torch.Generator | None = None,
) -> Callable[[Tensor], Tensor]:
    """Return the mean of a maximum under noise, as a smooth function.

    The maximum ``max <y, x>`` over a finite set or polytope of ``y`` has kinks; its mean::

        F(x) = E max <y, x + sigma z> = E <argmax_fun(x + sigma z), x + sigma z>

    has the mean of `argmax_fun` for its gradient, that `make_perturbed_argmax` estimates. With
    Gumbel noise and one-hot ``y`` it is ``sigma * (logsumexp(x / sigma) + 0.577...)``.

    Args:
        argmax_fun: Takes a tensor like ``x`` and returns the maximizer, of the shape of ``x``.
        num_samples: As in `make_perturbed_fun`.
        sigma: As there.
        noise: As there.
        generator: As there.

    Returns:
        A function of a floating-point tensor to a 0-d tensor. Its gradient is the mean of the
        maximizers at the same noise, and its derivatives beyond are those of
        `make_perturbed_argmax`.

    Raises:
        ValueError: For arguments out of range, or if the maximizer has another shape than ``x``.
        TypeError: When called with anything but a floating-point tensor.

    Example:
        >>> import torch
        >>> def largest(x):
        ...     return torch.nn.functional.one_hot(x.argmax(), len(x))
        >>> x = torch.tensor([1.0, 2.0, 1.5], requires_grad=True)
        >>> value = make_perturbed_max(largest, sigma=1.0, generator=torch.Generator())(x)
        >>> bool((value - x.logsumexp(0) - 0.5772).abs() < 0.1)
        True
        >>> value.backward()
        >>> bool((x.grad - x.softmax(0)).abs().max() < 0.1)
        True

    Source:
        Berthet et al., *Learning with differentiable perturbed optimizers*, NeurIPS 2020,
        definition 2.1 and proposition 2.2.
    """
    sampled = Sampled(argmax_fun, num_samples, sigma, noise, generator)

    @outside_graphs
    def perturbed(x: Tensor) -> Tensor:
        z, (maximizers,) = sampled(x)
        if maximizers.shape[1:] != x.shape:
            raise ValueError(
                f"`argmax_fun` must return a maximizer of the shape {tuple(x.shape)} of what it is "
                f"given, got {tuple(maximizers.shape[1:])}."
            )
        return Maximum.apply(sampled, z, maximizers, x)[0]

    return perturbed


class Maximum(torch.autograd.Function):
    """The mean maximum, whose gradient is the mean maximizer with all its derivatives."""

    @staticmethod
    def forward(sampled: Sampled, z: Tensor, maximizers: Tensor, x: Tensor) -> tuple[Tensor]:
        points = x + sampled.step * z
        return ((maximizers * points).sum() / len(z),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        ctx.sampled, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        z, maximizers, x = ctx.saved_tensors
        return None, None, None, cotangents[0] * ctx.sampled.mean(x, z, maximizers)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return loop(Maximum, info.batch_size, in_dims, args)
