"""The magic box: a one that carries the gradient of having drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor


def dice(log_prob: Tensor) -> Tensor:
    """Return ones whose derivatives of any order are those of the probability of a draw.

    The magic box of log-probabilities ``l``::

        dice(l) = exp(l - detach(l))

    is 1, and its gradient is that of ``l`` times itself. A cost times the `dice` of the summed
    log-probabilities of the draws that it depends on is therefore an unbiased estimate of the
    expected cost, and so are its derivatives of every order: where ``x`` is drawn from ``p``,
    ``E[dice(log p(x)) f(x)]`` differentiates as ``sum_x p(x) f(x)``.

    To lessen the variance, subtract ``(dice(l) - 1) * b``, which is 0, for any baseline ``b`` that
    does not depend on the draw: the first derivative is then that of ``l (f - b)``.

    Args:
        log_prob: Log-probabilities of what was drawn, of any shape, floating-point, and finite:
            what was drawn has a probability above zero.

    Returns:
        Ones of the shape and dtype of `log_prob`.

    Raises:
        TypeError: If `log_prob` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> law = torch.distributions.Categorical(logits=logits)
        >>> draw = torch.tensor(1)  # law.sample()
        >>> cost = 2.0 * dice(law.log_prob(draw))
        >>> cost.item()
        2.0
        >>> cost.backward()
        >>> logits.grad  # 2 * (one_hot(draw) - p)
        tensor([-0.6667,  1.3333, -0.6667])

    Source:
        Foerster, Farquhar, Al-Shedivat, Rocktaschel, Xing & Whiteson, *DiCE: the infinitely
        differentiable Monte Carlo estimator*, ICML 2018, section 4; the baseline: section 4.1.
    """
    if not isinstance(log_prob, Tensor) or not log_prob.is_floating_point():
        got = log_prob.dtype if isinstance(log_prob, Tensor) else type(log_prob).__name__
        raise TypeError(
            "`dice` takes the log-probabilities of what was drawn, a floating-point tensor such "
            f"as `distribution.log_prob(draw)`, got {got}."
        )
    return torch.exp(log_prob - log_prob.detach())
