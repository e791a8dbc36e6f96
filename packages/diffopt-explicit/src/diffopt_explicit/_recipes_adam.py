"""Adam and its kin under the names, defaults and numerics of `torch.optim`."""

from __future__ import annotations

from collections.abc import Callable

from diffopt_explicit._assemble import with_decay
from diffopt_explicit._chain import Chain
from diffopt_explicit._hyperparameter import Hyperparameter
from diffopt_explicit._moments import (
    scale_by_adam,
    scale_by_adamax,
    scale_by_amsgrad,
    scale_by_nadam,
    scale_by_radam,
)
from diffopt_explicit._transform import Tree


def adam(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    eps_root: Hyperparameter = 0.0,
    maximize: bool = False,
) -> Chain:
    """Adam, as ``torch.optim.Adam``: `scale_by_adam`.

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
    return with_decay(scale_by_adam(betas, eps, eps_root), lr, weight_decay, False, maximize)


def adamw(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 1e-2,
    *,
    eps_root: Hyperparameter = 0.0,
    maximize: bool = False,
    mask: Tree | Callable[[Tree], Tree] | None = None,
) -> Chain:
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``.

    Arguments are those of `adam`; `weight_decay` shrinks the weights themselves, by
    ``lr * weight_decay`` a step, and stays out of the moments. Where there is a `mask`, a tree of
    truth values or a function from the parameters to one, it shrinks only those that it is true of.

    Example:
        >>> import torch
        >>> from diffopt_explicit import adamw
        >>> tx, params = adamw(lr=0.1, weight_decay=0.5), {"w": torch.tensor([1.0, 2.0])}
        >>> tx.update({"w": torch.zeros(2)}, tx.init(params), params)[0]
        {'w': tensor([-0.0500, -0.1000])}

    Source: Loshchilov & Hutter, *Decoupled weight decay regularization*, ICLR 2019, algorithm 2.
    """
    rule = scale_by_adam(betas, eps, eps_root)
    return with_decay(rule, lr, weight_decay, True, maximize, mask)


def amsgrad(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> Chain:
    """Adam, or AdamW if decoupled, with ``amsgrad=True``: `scale_by_amsgrad`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import amsgrad
        >>> amsgrad().transforms[0]
        ScaleByAMSGrad(betas=(0.9, 0.999), eps=1e-08)

    Source: Reddi, Kale & Kumar, *On the convergence of Adam and beyond*, ICLR 2018.
    """
    rule = scale_by_amsgrad(betas, eps)
    return with_decay(rule, lr, weight_decay, decoupled_weight_decay, maximize)


def adamax(
    lr: Hyperparameter = 2e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> Chain:
    """Adamax, as ``torch.optim.Adamax``: `scale_by_adamax`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import adamax
        >>> adamax().transforms[0]
        ScaleByAdamax(betas=(0.9, 0.999), eps=1e-08)

    Source: Kingma & Ba, *Adam: a method for stochastic optimization*, ICLR 2015, algorithm 2.
    """
    return with_decay(scale_by_adamax(betas, eps), lr, weight_decay, False, maximize)


def nadam(
    lr: Hyperparameter = 2e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum_decay: Hyperparameter = 4e-3,
    *,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> Chain:
    """NAdam, as ``torch.optim.NAdam``: `scale_by_nadam`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import nadam
        >>> nadam().transforms[0]
        ScaleByNAdam(betas=(0.9, 0.999), eps=1e-08, momentum_decay=0.004)

    Source: Dozat, *Incorporating Nesterov momentum into Adam*, ICLR workshop 2016.
    """
    rule = scale_by_nadam(betas, eps, momentum_decay)
    return with_decay(rule, lr, weight_decay, decoupled_weight_decay, maximize)


def radam(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    *,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> Chain:
    """RAdam, as ``torch.optim.RAdam``: `scale_by_radam`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import radam
        >>> radam().transforms[0]
        ScaleByRAdam(betas=(0.9, 0.999), eps=1e-08)

    Source: Liu et al., *On the variance of the adaptive learning rate and beyond*, ICLR 2020.
    """
    rule = scale_by_radam(betas, eps)
    return with_decay(rule, lr, weight_decay, decoupled_weight_decay, maximize)
