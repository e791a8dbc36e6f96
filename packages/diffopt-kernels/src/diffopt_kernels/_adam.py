"""Adam, https://arxiv.org/abs/1412.6980, and AMSGrad, https://arxiv.org/abs/1904.09237."""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels._check import Number
from diffopt_kernels._composed import like, root_or_zero
from diffopt_kernels._rule import Rule
from diffopt_kernels._step import Known, pair, step, step_


def _formula(
    variant: int, step: int, numbers: Sequence[Any], g: Tensor, states: list[Tensor]
) -> tuple[Tensor, ...]:
    lr, beta1, beta2, eps, eps_root, _ = numbers
    m, v, *maximum = states
    m = like(beta1, m) * m + like(1 - beta1, m) * g
    v = like(beta2, v) * v + like(1 - beta2, v) * (g * g)
    new = [m, v]
    if maximum:
        v = torch.maximum(maximum[0], v)
        new.append(v)
    radicand = v * like(1 / (1 - beta2**step), v)
    if isinstance(eps_root, Tensor) or eps_root != 0:
        radicand = radicand + like(eps_root, v)
    denominator = root_or_zero(radicand) + like(eps, v)
    return like(-lr / (1 - beta1**step), m) * m / denominator, *new


ADAM = Rule(
    name="adam",
    numbers={"lr": inf, "betas[0]": 1, "betas[1]": 1, "eps": inf, "eps_root": inf},
    states=(("exp_avgs", "exp_avg_sqs"), ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")),
    formula=_formula,
)


def adam_step(
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: int | Sequence[int],
    *,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    params: Sequence[Tensor] | None = None,
    decoupled: bool = False,
    maximize: bool = False,
    applied: bool = False,
    known: Known = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Compute one Adam or AdamW step of a list of tensors, differentiable to any order.

    For a gradient ``g``, its moments ``m`` and ``v``, a parameter ``p`` and the step number
    ``t``, this computes what ``torch.optim.Adam`` and ``torch.optim.AdamW`` do::

        g <- -g                            if maximize
        g <- g + weight_decay * p          unless decoupled
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        update = -lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t) + eps_root) + eps)
        update <- update - lr * weight_decay * p   if decoupled

    Where the radicand is exactly 0, the derivative of the square root is taken as 0. So a
    coordinate without gradient gets the derivative -lr / eps that the first step has there, and
    not NaN, with ``eps_root=0``.

    Args:
        grads: Gradients, each of any shape, layout and floating-point dtype.
        exp_avgs: First moments ``m``, each like its gradient in shape, dtype and device.
        exp_avg_sqs: Second moments ``v``, likewise.
        steps: Number of the step that this call takes, counted from 1; for all tensors, or one
            for each.
        lr: Learning rate, at least 0. Like all numbers here, it may be a 0-d tensor, or a list or
            1-d tensor with one number for each tensor of the list. A tensor gets its exact
            derivative if it requires grad; its range is not checked.
        betas: Shares of the moments that are kept, each in [0, 1).
        eps: Added to the root, at least 0.
        eps_root: Added below the root, at least 0.
        weight_decay: Factor of the L2 penalty or, if `decoupled`, of AdamW's decay; at least 0.
        params: Parameters, needed if `applied`, or if `weight_decay` is a tensor or not 0.
        decoupled: Decay the parameters directly, as AdamW does.
        maximize: Go up along the gradients.
        applied: Return the new parameters, ``params + updates``, in the place of the updates.
        known: What the step gives anew, as lists in the order of what is returned, if the very same
            call has given it before. It is not computed again, only made part of the graph: to
            differentiate a step of which the result was kept, but not the graph.

    Returns:
        Updates, to be *added* to the parameters, new first and new second moments: lists of new
        tensors. The arguments stay as they are. bfloat16 and float16 are computed in float32.

    Raises:
        ValueError: If lists differ in length, tensors of one index in shape, dtype or device, or a
            number is out of its range.
        TypeError: If an argument is not a list of tensors, or a step not an integer.

    Example:
        >>> import torch
        >>> lr = torch.tensor(0.1, requires_grad=True)
        >>> g, zero = torch.tensor([0.5, -2.0, 0.0]), torch.zeros(3)
        >>> updates, _, _ = adam_step([g], [zero], [zero], 1, lr=lr, betas=(0.9, 0.999), eps=1e-8)
        >>> updates[0].detach()
        tensor([-0.1000,  0.1000, -0.0000])
        >>> torch.autograd.grad(updates[0][0], lr)
        (tensor(-1.),)

    Source:
        Kingma & Ba, *Adam: a method for stochastic optimization*, ICLR 2015, algorithm 1;
        Loshchilov & Hutter, *Decoupled weight decay regularization*, ICLR 2019, algorithm 2.
    """
    numbers = (lr, *pair("betas", betas), eps, eps_root)
    updates, exp_avgs, exp_avg_sqs = step(
        ADAM, 0, grads, (exp_avgs, exp_avg_sqs), steps, numbers, weight_decay, params, decoupled,
        maximize, applied, known,
    )  # fmt: skip
    return updates, exp_avgs, exp_avg_sqs


def adam_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: int | Sequence[int],
    *,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> None:
    """Take one Adam or AdamW step in place, for training without meta-gradients.

    Writes the new parameters and moments over `params`, `exp_avgs` and `exp_avg_sqs`; see
    `adam_step` for the formula and the arguments. Where that raises, nothing was written.

    Raises:
        ValueError: Besides what `adam_step` refuses: if a tensor is part of a graph, which the
            step would cut (parameters that are leaves may require grad); if what is to be written
            shares memory with itself or stands in the lists twice.
        TypeError: If an argument is not a list of tensors, or a step not an integer.

    Example:
        >>> import torch
        >>> p, m, v = torch.ones(2), torch.zeros(2), torch.zeros(2)
        >>> g = torch.tensor([3.0, -4.0])
        >>> adam_step_([p], [g], [m], [v], 1, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
        >>> p
        tensor([0.9000, 1.1000])
    """
    numbers = (lr, *pair("betas", betas), eps, eps_root)
    step_(
        ADAM, 0, params, grads, (exp_avgs, exp_avg_sqs), steps, numbers, weight_decay, decoupled,
        maximize,
    )  # fmt: skip


def amsgrad_step(
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: int | Sequence[int],
    *,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    params: Sequence[Tensor] | None = None,
    decoupled: bool = False,
    maximize: bool = False,
    applied: bool = False,
    known: Known = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Compute one AMSGrad step of a list of tensors, differentiable to any order.

    This is `adam_step` with the greatest second moment so far, as ``amsgrad=True`` makes it in
    ``torch.optim.Adam`` and ``torch.optim.AdamW``::

        w <- max(w, v)                              with the new v
        update = -lr * (m / (1 - beta1^t)) / (sqrt(w / (1 - beta2^t) + eps_root) + eps)

    Where ``w`` equals ``v``, each gets half the derivative of the maximum, as torch.maximum has it.

    Args:
        grads: Gradients, as in `adam_step`, which also explains all that is not explained here.
        exp_avgs: First moments ``m``.
        exp_avg_sqs: Second moments ``v``.
        max_exp_avg_sqs: Greatest second moments ``w``, each like its gradient in shape, dtype and
            device.
        steps: Number of the step that this call takes, counted from 1.
        lr: Learning rate.
        betas: Shares of the moments that are kept.
        eps: Added to the root.
        eps_root: Added below the root.
        weight_decay: Factor of the L2 penalty or, if `decoupled`, of AdamW's decay.
        params: Parameters, needed if `applied`, or if `weight_decay` is a tensor or not 0.
        decoupled: Decay the parameters directly, as AdamW does.
        maximize: Go up along the gradients.
        applied: Return the new parameters, ``params + updates``, in the place of the updates.
        known: What the step gives anew, as lists in the order of what is returned, if the very same
            call has given it before. It is not computed again, only made part of the graph: to
            differentiate a step of which the result was kept, but not the graph.

    Returns:
        Updates, to be *added* to the parameters, and the new ``m``, ``v`` and ``w``.

    Raises:
        ValueError: As `adam_step`.
        TypeError: As `adam_step`.

    Example:
        >>> import torch
        >>> g, zero, top = torch.tensor([3.0]), torch.zeros(1), torch.tensor([0.25])
        >>> updates, _, v, w = amsgrad_step(
        ...     [g], [zero], [zero], [top], 1, lr=0.1, betas=(0.0, 0.99), eps=0.0
        ... )
        >>> updates[0], v[0], w[0]
        (tensor([-0.0600]), tensor([0.0900]), tensor([0.2500]))

    Source:
        Reddi et al., *On the convergence of Adam and beyond*, ICLR 2018, algorithm 2, with the
        corrections of bias that torch.optim.Adam makes.
    """
    numbers = (lr, *pair("betas", betas), eps, eps_root)
    states = (exp_avgs, exp_avg_sqs, max_exp_avg_sqs)
    updates, exp_avgs, exp_avg_sqs, max_exp_avg_sqs = step(
        ADAM, 1, grads, states, steps, numbers, weight_decay, params, decoupled, maximize, applied,
        known,
    )  # fmt: skip
    return updates, exp_avgs, exp_avg_sqs, max_exp_avg_sqs


def amsgrad_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: int | Sequence[int],
    *,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    eps_root: Number = 0.0,
    weight_decay: Number = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> None:
    """Take one AMSGrad step in place, for training without meta-gradients.

    Writes over `params` and the moments; see `amsgrad_step` for the formula and the arguments, and
    `adam_step_` for what is refused.

    Example:
        >>> import torch
        >>> p, m, v, w = torch.ones(2), torch.zeros(2), torch.zeros(2), torch.zeros(2)
        >>> g = torch.tensor([3.0, -4.0])
        >>> amsgrad_step_([p], [g], [m], [v], [w], 1, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
        >>> p
        tensor([0.9000, 1.1000])
    """
    numbers = (lr, *pair("betas", betas), eps, eps_root)
    states = (exp_avgs, exp_avg_sqs, max_exp_avg_sqs)
    step_(ADAM, 1, params, grads, states, steps, numbers, weight_decay, decoupled, maximize)
