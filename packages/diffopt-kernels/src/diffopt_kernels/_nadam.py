"""NAdam: https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ."""

from collections.abc import Sequence
from math import exp, inf, log
from typing import Any

import torch
from torch import Tensor

from diffopt_kernels._check import Number, check_number, check_steps
from diffopt_kernels._composed import like, root_or_zero, widest
from diffopt_kernels._rule import Rule
from diffopt_kernels._step import Known, pair, refuse_learned, step, step_

# NOTE [shares]
# NAdam steps along (1 - mu) / (1 - M) g + mu' / (1 - M mu') m, where mu and mu' are this step's and
# the next one's momentum and M is the product of all momenta so far. These factors are the same
# for all elements, so they are computed here, by operations that differentiate themselves, and
# the rule takes them as two more numbers. So M may be learned through, over any number of steps.


def _formula(
    variant: int, step: int, numbers: Sequence[Any], g: Tensor, states: list[Tensor]
) -> tuple[Tensor, ...]:
    lr, beta1, beta2, eps, g_share, m_share, _ = numbers
    m, v = states
    m = like(beta1, m) * m + like(1 - beta1, m) * g
    v = like(beta2, v) * v + like(1 - beta2, v) * (g * g)
    direction = like(g_share, g) * g + like(m_share, m) * m
    denominator = root_or_zero(v * like(1 / (1 - beta2**step), v)) + like(eps, v)
    return like(-lr, m) * direction / denominator, m, v


NADAM = Rule(
    name="nadam",
    numbers={
        "lr": inf,
        "betas[0]": 1,
        "betas[1]": 1,
        "eps": inf,
        "share of the gradient": inf,
        "share of the momentum": inf,
    },
    states=(("exp_avgs", "exp_avg_sqs"),),
    formula=_formula,
)


def nadam_step(
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    mu_products: Number,
    steps: int | Sequence[int],
    *,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    momentum_decay: Number = 4e-3,
    weight_decay: Number = 0.0,
    params: Sequence[Tensor] | None = None,
    decoupled: bool = False,
    maximize: bool = False,
    applied: bool = False,
    known: Known = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Number]:
    """Compute one NAdam step of a list of tensors, differentiable to any order.

    For a gradient ``g``, its moments ``m`` and ``v``, a parameter ``p``, the product ``M`` of all
    momenta so far and the step number ``t``, this computes what ``torch.optim.NAdam`` does::

        g <- -g                            if maximize
        g <- g + weight_decay * p          unless decoupled
        mu(t) = beta1 * (1 - 0.96^(t * momentum_decay) / 2)
        M <- M * mu(t)
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g^2
        direction = (1 - mu(t)) / (1 - M) * g + mu(t + 1) / (1 - M * mu(t + 1)) * m
        update = -lr * direction / (sqrt(v / (1 - beta2^t)) + eps)
        update <- update - lr * weight_decay * p   if decoupled

    Where ``v`` is exactly 0, the derivative of the square root is taken as 0, as in `adam_step`.

    Args:
        grads: Gradients, as in `adam_step`, which also explains all that is not explained here.
        exp_avgs: First moments ``m``.
        exp_avg_sqs: Second moments ``v``.
        mu_products: The product ``M`` that the step before returned; 1 for the first step. (torch
            keeps it in float32, this in float64.)
        steps: Number of the step that this call takes, counted from 1.
        lr: Learning rate.
        betas: Shares of the moments that are kept.
        eps: Added to the root.
        momentum_decay: How soon the momentum grows to ``beta1``, at least 0.
        weight_decay: Factor of the L2 penalty or, if `decoupled`, of AdamW's decay.
        params: Parameters, needed if `applied`, or if `weight_decay` is a tensor or not 0.
        decoupled: Decay the parameters directly, as AdamW does.
        maximize: Go up along the gradients.
        applied: Return the new parameters, ``params + updates``, in the place of the updates.
        known: What the step gives anew, as lists in the order of what is returned, if the very same
            call has given it before. It is not computed again, only made part of the graph: to
            differentiate a step of which the result was kept, but not the graph.

    Returns:
        Updates, to be *added* to the parameters, the new ``m`` and ``v``, and the new ``M``: one
        number if it is the same for all tensors, else one for each; a tensor if what it comes from
        is one, through which derivatives pass to earlier steps.

    Raises:
        ValueError: As `adam_step`.
        TypeError: As `adam_step`.

    Example:
        >>> import torch
        >>> g, zero = torch.tensor([0.5, -2.0, 0.0]), torch.zeros(3)
        >>> updates, _, _, product = nadam_step(
        ...     [g], [zero], [zero], 1.0, 1, lr=0.1, betas=(0.9, 0.999), eps=1e-8, momentum_decay=0
        ... )
        >>> updates[0], product
        (tensor([-0.1056,  0.1056, -0.0000]), 0.45)

    Source:
        Dozat, *Incorporating Nesterov momentum into Adam*, ICLR workshop 2016, algorithm 8.
    """
    beta1, beta2 = pair("betas", betas)
    shares, mu_products = _schedule(grads, steps, beta1, momentum_decay, mu_products)
    numbers = (lr, beta1, beta2, eps, *shares)
    updates, exp_avgs, exp_avg_sqs = step(
        NADAM, 0, grads, (exp_avgs, exp_avg_sqs), steps, numbers, weight_decay, params, decoupled,
        maximize, applied, known,
    )  # fmt: skip
    return updates, exp_avgs, exp_avg_sqs, mu_products


def nadam_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    mu_products: Number,
    steps: int | Sequence[int],
    *,
    lr: Number,
    betas: tuple[Number, Number],
    eps: Number,
    momentum_decay: Number = 4e-3,
    weight_decay: Number = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> Number:
    """Take one NAdam step in place, for training without meta-gradients.

    Writes over `params`, `exp_avgs` and `exp_avg_sqs`; see `nadam_step` for the formula and the
    arguments, and `adam_step_` for what is refused.

    Returns:
        The new product of momenta, which is a number and so cannot be written over.

    Example:
        >>> import torch
        >>> p, m, v = torch.ones(2), torch.zeros(2), torch.zeros(2)
        >>> nadam_step_(
        ...     [p], [torch.tensor([3.0, -4.0])], [m], [v], 1.0, 1,
        ...     lr=0.1, betas=(0.9, 0.999), eps=1e-8, momentum_decay=0,
        ... )
        0.45
        >>> p
        tensor([0.8944, 1.1056])
    """
    beta1, beta2 = pair("betas", betas)
    refuse_learned(momentum_decay=momentum_decay, mu_products=mu_products)
    shares, mu_products = _schedule(params, steps, beta1, momentum_decay, mu_products)
    numbers = (lr, beta1, beta2, eps, *shares)
    step_(
        NADAM, 0, params, grads, (exp_avgs, exp_avg_sqs), steps, numbers, weight_decay, decoupled,
        maximize,
    )  # fmt: skip
    return mu_products


def _schedule(
    grads: Sequence[Tensor], steps: Any, beta1: Any, momentum_decay: Any, product: Any
) -> tuple[tuple[Number, Number], Number]:
    """Return the shares of gradient and momentum, and the new product of momenta."""
    checked = (
        check_number("betas[0]", beta1, 1, grads),
        check_number("momentum_decay", momentum_decay, inf, grads),
        check_number("mu_products", product, inf, grads),
    )
    numbers = [widest(x) for x in checked]
    steps = check_steps(steps, len(grads))
    if len(set(steps)) == 1 and not any(_is_for_each(x) for x in numbers):
        *shares, product = _momenta(steps[0], *numbers)
        return (shares[0], shares[1]), product
    rows = [
        _momenta(step, *[x[i] if _is_for_each(x) else x for x in numbers])
        for i, step in enumerate(steps)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    return (columns[0], columns[1]), columns[2]


def _momenta(step: int, beta1: Any, decay: Any, product: Any) -> tuple[Any, Any, Any]:
    mu, next_mu = (beta1 * (1 - 0.5 * _power(decay * t)) for t in (step, step + 1))
    product = product * mu
    return (1 - mu) / (1 - product), next_mu / (1 - product * next_mu), product


def _power(exponent: Any) -> Any:
    logarithm = log(0.96) * exponent
    return torch.exp(logarithm) if isinstance(logarithm, Tensor) else exp(logarithm)


def _is_for_each(number: Any) -> bool:
    return isinstance(number, tuple) or (isinstance(number, Tensor) and number.dim() == 1)
