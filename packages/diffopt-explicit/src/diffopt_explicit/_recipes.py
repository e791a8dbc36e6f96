"""Optimizers under the names, defaults and numerics of `torch.optim`."""

from __future__ import annotations

from diffopt_explicit._adam import Adam
from diffopt_explicit._chain import Chain, chain
from diffopt_explicit._decay import add_decayed_weights
from diffopt_explicit._hyperparameter import Hyperparameter, is_zero
from diffopt_explicit._scale import scale, scale_by_learning_rate
from diffopt_explicit._trace import trace
from diffopt_explicit._transform import Tree


def sgd(
    lr: Hyperparameter | Tree = 1e-3,
    momentum: Hyperparameter = 0.0,
    dampening: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> Chain:
    """Stochastic gradient descent, as ``torch.optim.SGD``.

    Every hyperparameter is a number, a 0-d tensor, or a schedule from the step (0, 1, ...)
    to either. A tensor that requires grad gets its exact hypergradient.

    Args:
        lr: Learning rate; also a tree of rates shaped like the parameters (Meta-SGD).
        momentum: Share of the past updates kept at each step.
        dampening: Share of each gradient left out of the momentum.
        weight_decay: Strength of the L2 penalty.
        nesterov: Use Nesterov's momentum.
        maximize: Ascend.

    Returns:
        A chain of `scale`, `add_decayed_weights`, `trace` and `scale_by_learning_rate`,
        without the parts that a zero switches off.

    Raises:
        ValueError: For a negative number, or Nesterov's momentum with dampening.

    Example:
        >>> import torch
        >>> from diffopt_explicit import apply_updates, sgd
        >>> lr = torch.tensor(0.1, requires_grad=True)
        >>> tx, params = sgd(lr), {"w": torch.tensor([1.0, 2.0])}
        >>> updates, state = tx.update({"w": torch.ones(2)}, tx.init(params), params)
        >>> torch.autograd.grad(apply_updates(params, updates)["w"].sum(), lr)
        (tensor(-2.),)

    Source: Sutskever et al., *On the importance of initialization and momentum in deep
    learning*, ICML 2013.
    """
    parts = []
    if maximize:
        parts.append(scale(-1.0))
    if not is_zero(weight_decay):
        parts.append(add_decayed_weights(weight_decay))
    if nesterov or not is_zero(momentum):
        parts.append(trace(momentum, dampening, nesterov))
    return chain(*parts, scale_by_learning_rate(lr))


def adam(
    lr: Hyperparameter | Tree = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    eps_root: Hyperparameter = 0.0,
    maximize: bool = False,
) -> Adam:
    """Adam, as ``torch.optim.Adam``: one fused call a step where `diffopt_kernels` is installed.

    Every hyperparameter is a number, a 0-d tensor, or a schedule from the step (0, 1, ...)
    to either. A tensor that requires grad gets its exact hypergradient. Meta-gradients are
    finite at exactly zero gradients, without an `eps_root`.

    Args:
        lr: Learning rate; also a tree of rates shaped like the parameters (Meta-SGD).
        betas: Decay rates of the first and second moment, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Strength of the L2 penalty.
        eps_root: Added under the root of the second moment.
        maximize: Ascend.

    Raises:
        ValueError: For a hyperparameter outside its range.

    Example:
        >>> import torch
        >>> from diffopt_explicit import adam
        >>> tx, params = adam(lr=0.1), {"w": torch.tensor([1.0, 2.0])}
        >>> updates, state = tx.update({"w": torch.tensor([5.0, 0.0])}, tx.init(params), params)
        >>> updates
        {'w': tensor([-0.1000, -0.0000])}

    Source: Kingma & Ba, *Adam: a method for stochastic optimization*, ICLR 2015, algorithm 1.
    """
    return Adam(lr, betas, eps, weight_decay, False, eps_root, maximize)


def adamw(
    lr: Hyperparameter | Tree = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 1e-2,
    *,
    eps_root: Hyperparameter = 0.0,
    maximize: bool = False,
) -> Adam:
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``.

    Arguments are those of `adam`; `weight_decay` shrinks the weights themselves, by
    ``lr * weight_decay`` a step, and stays out of the moments.

    Example:
        >>> import torch
        >>> from diffopt_explicit import adamw
        >>> tx, params = adamw(lr=0.1, weight_decay=0.5), {"w": torch.tensor([1.0, 2.0])}
        >>> tx.update({"w": torch.zeros(2)}, tx.init(params), params)[0]
        {'w': tensor([-0.0500, -0.1000])}

    Source: Loshchilov & Hutter, *Decoupled weight decay regularization*, ICLR 2019, algorithm 2.
    """
    return Adam(lr, betas, eps, weight_decay, True, eps_root, maximize)
