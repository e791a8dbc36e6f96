"""RMSProp: https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf."""

from collections.abc import Sequence
from math import inf
from typing import Any

from torch import Tensor

from diffopt_kernels._check import Number, is_on
from diffopt_kernels._composed import like, root_or_zero
from diffopt_kernels._rule import Rule
from diffopt_kernels._step import Known, step, step_

_CENTERED, _MOMENTUM = 1, 2  # bits of the variant


def _formula(
    variant: int, step: int, numbers: Sequence[Any], g: Tensor, states: list[Tensor]
) -> tuple[Tensor, ...]:
    lr, alpha, eps, momentum, _ = numbers
    s = states[0]
    s = like(alpha, s) * s + like(1 - alpha, s) * (g * g)
    radicand, new = s, [s]
    if variant & _CENTERED:
        a = states[1]
        a = a + like(1 - alpha, a) * (g - a)
        radicand = (s - a * a).clamp(min=0)  # rounding may leave less
        new.append(a)
    direction = g / (root_or_zero(radicand) + like(eps, s))
    if variant & _MOMENTUM:
        b = states[-1]
        direction = like(momentum, b) * b + direction
        new.append(direction)
    return like(-lr, s) * direction, *new


_COLUMNS = ("square_avgs", "grad_avgs", "momentum_buffers")
RMSPROP = Rule(
    name="rmsprop",
    numbers={"lr": inf, "alpha": inf, "eps": inf, "momentum": inf},
    states=(_COLUMNS[:1], _COLUMNS[:2], _COLUMNS[::2], _COLUMNS),
    formula=_formula,
)


def rmsprop_step(
    grads: Sequence[Tensor],
    square_avgs: Sequence[Tensor],
    grad_avgs: Sequence[Tensor] | None = None,
    momentum_buffers: Sequence[Tensor] | None = None,
    *,
    lr: Number,
    alpha: Number,
    eps: Number,
    weight_decay: Number = 0.0,
    momentum: Number = 0.0,
    centered: bool = False,
    params: Sequence[Tensor] | None = None,
    maximize: bool = False,
    applied: bool = False,
    known: Known = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Compute one RMSProp step of a list of tensors, differentiable to any order.

    For a gradient ``g``, the averages ``s`` of its squares and ``a`` of itself, a momentum buffer
    ``b`` and a parameter ``p``, this computes what ``torch.optim.RMSprop`` does::

        g <- -g                              if maximize
        g <- g + weight_decay * p
        s <- alpha * s + (1 - alpha) * g^2
        a <- a + (1 - alpha) * (g - a)       if centered
        q = g / (sqrt(s - a^2 if centered else s) + eps)
        b <- momentum * b + q                if momentum
        update = -lr * (b if momentum else q)

    Where the radicand is 0 (or less, by rounding), it counts as 0, and so does the derivative of
    its root: a coordinate without gradient gets the derivative -lr / eps, and not NaN.

    Args:
        grads: Gradients, each of any shape, layout and floating-point dtype.
        square_avgs: Averages ``s``, each like its gradient in shape, dtype and device.
        grad_avgs: Averages ``a``, likewise; only where `centered`.
        momentum_buffers: Buffers ``b``, likewise; only where `momentum` is a tensor or not 0.
        lr: Learning rate, at least 0. Like all numbers here, it may be a 0-d tensor, or a list or
            1-d tensor with one number for each tensor of the list. A tensor gets its exact
            derivative if it requires grad; its range is not checked.
        alpha: Share of the averages that is kept, at least 0.
        eps: Added to the root, at least 0.
        weight_decay: Factor of the L2 penalty, at least 0.
        momentum: Share of the buffer that is kept, at least 0.
        centered: Divide by the standard deviation of the gradients.
        params: Parameters, needed if `applied`, or if `weight_decay` is a tensor or not 0.
        maximize: Go up along the gradients.
        applied: Return the new parameters, ``params + updates``, in the place of the updates.
        known: What the step gives anew, as lists in the order of what is returned, if the very same
            call has given it before. It is not computed again, only made part of the graph: to
            differentiate a step of which the result was kept, but not the graph.

    Returns:
        Updates, to be *added* to the parameters, and the new ``s``, ``a`` and ``b``: lists of new
        tensors. What is not in use comes back as it is, None as an empty list. bfloat16 and
        float16 are computed in float32.

    Raises:
        ValueError: If lists differ in length, tensors of one index in shape, dtype or device, or a
            number is out of its range.
        TypeError: If an argument is not a list of tensors.

    Example:
        >>> import torch
        >>> alpha = torch.tensor(0.75, requires_grad=True)
        >>> updates, square_avgs, _, _ = rmsprop_step(
        ...     [torch.tensor([2.0, 0.0])], [torch.zeros(2)], lr=0.1, alpha=alpha, eps=1e-8
        ... )
        >>> updates[0].detach()
        tensor([-0.2000, -0.0000])
        >>> torch.autograd.grad(square_avgs[0][0], alpha)
        (tensor(-4.),)

    Source:
        Hinton, *Neural networks for machine learning*, lecture 6, 2012; Graves, *Generating
        sequences with recurrent neural networks*, 2013, eqs. 38-41 (centered).
    """
    variant, states = _in_use(square_avgs, grad_avgs, momentum_buffers, momentum, centered)
    numbers = (lr, alpha, eps, momentum)
    updates, *new = step(
        RMSPROP, variant, grads, states, 1, numbers, weight_decay, params, False, maximize, applied,
        known,
    )  # fmt: skip
    return (
        updates,
        new[0],
        new[1] if variant & _CENTERED else list(grad_avgs or ()),
        new[-1] if variant & _MOMENTUM else list(momentum_buffers or ()),
    )


def rmsprop_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    square_avgs: Sequence[Tensor],
    grad_avgs: Sequence[Tensor] | None = None,
    momentum_buffers: Sequence[Tensor] | None = None,
    *,
    lr: Number,
    alpha: Number,
    eps: Number,
    weight_decay: Number = 0.0,
    momentum: Number = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> None:
    """Take one RMSProp step in place, for training without meta-gradients.

    Writes over `params` and the states; see `rmsprop_step` for the formula and the arguments, and
    `adam_step_` for what is refused.

    Example:
        >>> import torch
        >>> p, s = torch.ones(2), torch.zeros(2)
        >>> rmsprop_step_([p], [torch.tensor([3.0, -4.0])], [s], lr=0.1, alpha=0.75, eps=1e-8)
        >>> p
        tensor([0.8000, 1.2000])
    """
    variant, states = _in_use(square_avgs, grad_avgs, momentum_buffers, momentum, centered)
    numbers = (lr, alpha, eps, momentum)
    step_(RMSPROP, variant, params, grads, states, 1, numbers, weight_decay, False, maximize)


def _in_use(
    square_avgs: Any, grad_avgs: Any, momentum_buffers: Any, momentum: Any, centered: bool
) -> tuple[int, tuple[Any, ...]]:
    variant, states = 0, (square_avgs,)
    if centered:
        variant, states = variant | _CENTERED, (*states, grad_avgs)
    if is_on(momentum):
        variant, states = variant | _MOMENTUM, (*states, momentum_buffers)
    return variant, states
