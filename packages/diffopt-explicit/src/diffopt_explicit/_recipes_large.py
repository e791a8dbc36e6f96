"""Optimizers for large models and batches: Adafactor, LAMB, LARS, Lion, Muon."""

from __future__ import annotations

from diffopt_explicit._adafactor import scale_by_adafactor
from diffopt_explicit._assemble import before, with_decay
from diffopt_explicit._chain import Chain, chain
from diffopt_explicit._hyperparameter import Hyperparameter, is_zero
from diffopt_explicit._moments import scale_by_adam
from diffopt_explicit._muon import Coefficients, scale_by_muon
from diffopt_explicit._scale import scale, scale_by_learning_rate
from diffopt_explicit._signs import scale_by_lion
from diffopt_explicit._trace import trace
from diffopt_explicit._trust import scale_by_lars, scale_by_trust_ratio


def adafactor(
    lr: Hyperparameter = 1e-2,
    beta2_decay: Hyperparameter = -0.8,
    eps: tuple[Hyperparameter | None, Hyperparameter] = (None, 1e-3),
    d: Hyperparameter = 1.0,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> Chain:
    """Adafactor, as ``torch.optim.Adafactor``: `scale_by_adafactor`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import adafactor
        >>> adafactor().transforms[1]
        Scale(factor=-1.0)

    Source: Shazeer & Stern, *Adafactor: adaptive learning rates with sublinear memory cost*,
    ICML 2018.
    """
    rule = scale_by_adafactor(lr, beta2_decay, eps, d, weight_decay)
    return chain(*before(0.0, maximize), rule, scale(-1.0))


def lamb(
    lr: Hyperparameter = 1e-3,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> Chain:
    """LAMB: Adam with decoupled weight decay, each parameter's update as long as its weights.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import lamb
        >>> lamb().transforms[1]
        ScaleByTrustRatio(coefficient=1.0, eps=0.0)

    Source: You et al., *Large batch optimization for deep learning: training BERT in 76
    minutes*, ICLR 2020, algorithm 2.
    """
    rule = chain(scale_by_adam(betas, eps), *before(weight_decay, False), scale_by_trust_ratio())
    return chain(*before(0.0, maximize), *rule.transforms, scale_by_learning_rate(lr))


def lars(
    lr: Hyperparameter = 1e-3,
    momentum: Hyperparameter = 0.9,
    weight_decay: Hyperparameter = 0.0,
    coefficient: Hyperparameter = 1e-3,
    eps: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> Chain:
    """LARS: momentum of gradients that are scaled to the norms of their weights.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import lars
        >>> lars(0.5).transforms[1:]
        (ScaleByLearningRate(lr=0.5), Trace(momentum=0.9, dampening=0.0, nesterov=False))

    Source: You, Gitman & Ginsburg, *Large batch training of convolutional networks*, 2017,
    algorithm 1.
    """
    parts = [scale_by_lars(weight_decay, coefficient, eps), scale_by_learning_rate(lr)]
    last = [] if is_zero(momentum) else [trace(momentum)]
    return chain(*before(0.0, maximize), *parts, *last)


def lion(
    lr: Hyperparameter = 1e-4,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.99),
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> Chain:
    """Lion, with decoupled weight decay: `scale_by_lion`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad) or schedules.

    Example:
        >>> from diffopt_explicit import lion
        >>> lion().transforms
        (ScaleByLion(betas=(0.9, 0.99)), ScaleByLearningRate(lr=0.0001))

    Source: Chen et al., *Symbolic discovery of optimization algorithms*, NeurIPS 2023,
    algorithm 2.
    """
    return with_decay(scale_by_lion(betas), lr, weight_decay, True, maximize)


def muon(
    lr: Hyperparameter = 1e-3,
    weight_decay: Hyperparameter = 0.1,
    momentum: Hyperparameter = 0.95,
    nesterov: bool = True,
    ns_coefficients: Coefficients = (3.4445, -4.775, 2.0315),
    eps: Hyperparameter = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    maximize: bool = False,
) -> Chain:
    """Muon for matrices, as ``torch.optim.Muon`` but for the precision: `scale_by_muon`.

    The orthogonalization is computed in the precision of the parameters, so that derivatives are
    exact; ``torch.optim`` rounds it to bfloat16.

    Raises:
        ValueError: At `init`, for a parameter that is no matrix.

    Example:
        >>> import torch
        >>> from diffopt_explicit import adamw, muon, partition
        >>> params = {"weight": torch.ones(3, 3), "bias": torch.ones(3)}
        >>> tx = partition({2: muon(), 1: adamw()}, {"weight": 2, "bias": 1})
        >>> updates, state = tx.update(params, tx.init(params), params)

    Source: Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024.
    """
    rule = scale_by_muon(momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)
    return with_decay(rule, lr, weight_decay, True, maximize)
