"""AdaGrad: https://jmlr.org/papers/v12/duchi11a.html."""

from collections.abc import Sequence
from math import inf
from typing import Any

from torch import Tensor

from diffopt_kernels._check import Number
from diffopt_kernels._composed import like, root_or_zero
from diffopt_kernels._rule import Rule
from diffopt_kernels._step import Known, step, step_


def _formula(
    variant: int, step: int, numbers: Sequence[Any], g: Tensor, states: list[Tensor]
) -> tuple[Tensor, ...]:
    lr, lr_decay, eps, _ = numbers
    (s,) = states
    s = s + g * g
    step_size = lr / (1 + (step - 1) * lr_decay)
    return like(-step_size, s) * g / (root_or_zero(s) + like(eps, s)), s


ADAGRAD = Rule(
    name="adagrad",
    numbers={"lr": inf, "lr_decay": inf, "eps": inf},
    states=(("state_sums",),),
    formula=_formula,
)


def adagrad_step(
    grads: Sequence[Tensor],
    state_sums: Sequence[Tensor],
    steps: int | Sequence[int],
    *,
    lr: Number,
    lr_decay: Number = 0.0,
    eps: Number,
    weight_decay: Number = 0.0,
    params: Sequence[Tensor] | None = None,
    maximize: bool = False,
    applied: bool = False,
    known: Known = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute one AdaGrad step of a list of tensors, differentiable to any order.

    For a gradient ``g``, the sum ``s`` of its squares, a parameter ``p`` and the step number
    ``t``, this computes what ``torch.optim.Adagrad`` does::

        g <- -g                       if maximize
        g <- g + weight_decay * p
        s <- s + g^2
        update = -lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Where ``s`` is exactly 0, the derivative of the square root is taken as 0. So a coordinate
    that never had a gradient gets the derivative -lr / eps, and not NaN.

    Args:
        grads: Gradients, each of any shape, layout and floating-point dtype.
        state_sums: Sums ``s``, each like its gradient in shape, dtype and device.
        steps: Number of the step that this call takes, counted from 1; for all tensors, or one
            for each.
        lr: Learning rate, at least 0. Like all numbers here, it may be a 0-d tensor, or a list or
            1-d tensor with one number for each tensor of the list. A tensor gets its exact
            derivative if it requires grad; its range is not checked.
        lr_decay: How the learning rate falls, at least 0.
        eps: Added to the root, at least 0.
        weight_decay: Factor of the L2 penalty, at least 0.
        params: Parameters, needed if `applied`, or if `weight_decay` is a tensor or not 0.
        maximize: Go up along the gradients.
        applied: Return the new parameters, ``params + updates``, in the place of the updates.
        known: What the step gives anew, as lists in the order of what is returned, if the very same
            call has given it before. It is not computed again, only made part of the graph: to
            differentiate a step of which the result was kept, but not the graph.

    Returns:
        Updates, to be *added* to the parameters, and the new sums: lists of new tensors. bfloat16
        and float16 are computed in float32.

    Raises:
        ValueError: If lists differ in length, tensors of one index in shape, dtype or device, or a
            number is out of its range.
        TypeError: If an argument is not a list of tensors, or a step not an integer.

    Example:
        >>> import torch
        >>> g, lr = torch.tensor([3.0, 0.0]), torch.tensor(0.1, requires_grad=True)
        >>> updates, sums = adagrad_step([g], [torch.tensor([16.0, 0.0])], 2, lr=lr, eps=1e-10)
        >>> updates[0].detach(), sums[0]
        (tensor([-0.0600, -0.0000]), tensor([25.,  0.]))
        >>> torch.autograd.grad(updates[0][0], lr)
        (tensor(-0.6000),)

    Source:
        Duchi et al., *Adaptive subgradient methods for online learning and stochastic
        optimization*, JMLR 2011, figure 1, with the decaying step size of torch.optim.Adagrad.
    """
    numbers = (lr, lr_decay, eps)
    updates, state_sums = step(
        ADAGRAD,
        0,
        grads,
        (state_sums,),
        steps,
        numbers,
        weight_decay,
        params,
        False,
        maximize,
        applied,
        known,
    )
    return updates, state_sums


def adagrad_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state_sums: Sequence[Tensor],
    steps: int | Sequence[int],
    *,
    lr: Number,
    lr_decay: Number = 0.0,
    eps: Number,
    weight_decay: Number = 0.0,
    maximize: bool = False,
) -> None:
    """Take one AdaGrad step in place, for training without meta-gradients.

    Writes over `params` and `state_sums`; see `adagrad_step` for the formula and the arguments,
    and `adam_step_` for what is refused.

    Example:
        >>> import torch
        >>> p, s = torch.ones(2), torch.zeros(2)
        >>> adagrad_step_([p], [torch.tensor([3.0, -4.0])], [s], 1, lr=0.1, eps=1e-10)
        >>> p
        tensor([0.9000, 1.1000])
    """
    numbers = (lr, lr_decay, eps)
    step_(ADAGRAD, 0, params, grads, (state_sums,), steps, numbers, weight_decay, False, maximize)
