"""Lion: https://arxiv.org/abs/2302.06675."""

from collections.abc import Sequence
from math import inf
from typing import Any

from torch import Tensor

from diffopt_kernels._check import Number
from diffopt_kernels._composed import like
from diffopt_kernels._rule import Rule
from diffopt_kernels._step import Known, pair, step, step_


def _formula(
    variant: int, step: int, numbers: Sequence[Any], g: Tensor, states: list[Tensor]
) -> tuple[Tensor, ...]:
    lr, beta1, beta2, _ = numbers
    (m,) = states
    direction = (like(beta1, m) * m + like(1 - beta1, m) * g).sign()
    return like(-lr, m) * direction, like(beta2, m) * m + like(1 - beta2, m) * g


LION = Rule(
    name="lion",
    numbers={"lr": inf, "betas[0]": 1, "betas[1]": 1},
    states=(("exp_avgs",),),
    formula=_formula,
)


def lion_step(
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    *,
    lr: Number,
    betas: tuple[Number, Number],
    weight_decay: Number = 0.0,
    params: Sequence[Tensor] | None = None,
    maximize: bool = False,
    applied: bool = False,
    known: Known = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute one Lion step of a list of tensors, differentiable to any order.

    For a gradient ``g``, its momentum ``m`` and a parameter ``p``::

        g <- -g                                  if maximize
        update = -lr * sign(beta1 * m + (1 - beta1) * g) - lr * weight_decay * p
        m <- beta2 * m + (1 - beta2) * g

    The derivative of the sign is 0, wherever it exists and, by definition here, at 0. So the
    update has exact derivatives in `lr`, `weight_decay` and the parameters, and the derivative 0
    in everything else; those of the new momentum are exact in everything.

    Args:
        grads: Gradients, each of any shape, layout and floating-point dtype.
        exp_avgs: Momenta ``m``, each like its gradient in shape, dtype and device.
        lr: Learning rate, at least 0. Like all numbers here, it may be a 0-d tensor, or a list or
            1-d tensor with one number for each tensor of the list. A tensor gets its exact
            derivative if it requires grad; its range is not checked.
        betas: Shares of the momentum in the direction and in the new momentum, each in [0, 1).
        weight_decay: Factor of the decoupled decay, at least 0.
        params: Parameters, needed if `applied`, or if `weight_decay` is a tensor or not 0.
        maximize: Go up along the gradients.
        applied: Return the new parameters, ``params + updates``, in the place of the updates.
        known: What the step gives anew, as lists in the order of what is returned, if the very same
            call has given it before. It is not computed again, only made part of the graph: to
            differentiate a step of which the result was kept, but not the graph.

    Returns:
        Updates, to be *added* to the parameters, and the new momenta: lists of new tensors.
        bfloat16 and float16 are computed in float32.

    Raises:
        ValueError: If lists differ in length, tensors of one index in shape, dtype or device, or a
            number is out of its range.
        TypeError: If an argument is not a list of tensors.

    Example:
        >>> import torch
        >>> g, lr = torch.tensor([3.0, -4.0]), torch.tensor(0.1, requires_grad=True)
        >>> updates, momenta = lion_step([g], [torch.zeros(2)], lr=lr, betas=(0.9, 0.99))
        >>> updates[0].detach(), momenta[0]
        (tensor([-0.1000,  0.1000]), tensor([ 0.0300, -0.0400]))
        >>> torch.autograd.grad(updates[0][0], lr)
        (tensor(-1.),)

    Source:
        Chen et al., *Symbolic discovery of optimization algorithms*, NeurIPS 2023, algorithm 2.
    """
    numbers = (lr, *pair("betas", betas))
    updates, exp_avgs = step(
        LION, 0, grads, (exp_avgs,), 1, numbers, weight_decay, params, True, maximize, applied,
        known,
    )  # fmt: skip
    return updates, exp_avgs


def lion_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    *,
    lr: Number,
    betas: tuple[Number, Number],
    weight_decay: Number = 0.0,
    maximize: bool = False,
) -> None:
    """Take one Lion step in place, for training without meta-gradients.

    Writes over `params` and `exp_avgs`; see `lion_step` for the formula and the arguments, and
    `adam_step_` for what is refused.

    Example:
        >>> import torch
        >>> p, m = torch.ones(2), torch.zeros(2)
        >>> lion_step_([p], [torch.tensor([3.0, -4.0])], [m], lr=0.1, betas=(0.9, 0.99))
        >>> p
        tensor([0.9000, 1.1000])
    """
    numbers = (lr, *pair("betas", betas))
    step_(LION, 0, params, grads, (exp_avgs,), 1, numbers, weight_decay, True, maximize)
