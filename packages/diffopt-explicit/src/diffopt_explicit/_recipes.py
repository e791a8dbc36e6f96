"""Optimizers under the names, defaults and numerics of `torch.optim`, but for Adam and its kin."""

from __future__ import annotations

from diffopt_explicit._assemble import before
from diffopt_explicit._averaged import scale_by_asgd
from diffopt_explicit._chain import Chain, chain
from diffopt_explicit._hyperparameter import Hyperparameter, is_zero
from diffopt_explicit._scale import scale, scale_by_learning_rate
from diffopt_explicit._signs import scale_by_rprop
from diffopt_explicit._squares import scale_by_adadelta, scale_by_adagrad, scale_by_rms
from diffopt_explicit._trace import trace


def sgd(
    lr: Hyperparameter = 1e-3,
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
    parts = before(weight_decay, maximize)
    if nesterov or not is_zero(momentum):
        parts.append(trace(momentum, dampening, nesterov))
    return chain(*parts, scale_by_learning_rate(lr))


def rmsprop(
    lr: Hyperparameter = 1e-2,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> Chain:
    """RMSProp, as ``torch.optim.RMSprop``: `scale_by_rms` and, if asked for, `trace`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import rmsprop
        >>> rmsprop(lr=0.1).transforms
        (ScaleByRMS(alpha=0.99, eps=1e-08, centered=False), ScaleByLearningRate(lr=0.1))

    Source: Tieleman & Hinton, *Lecture 6.5: RMSProp*, 2012.
    """
    parts = [*before(weight_decay, maximize), scale_by_rms(alpha, eps, centered=centered)]
    if not is_zero(momentum):
        parts.append(trace(momentum))
    return chain(*parts, scale_by_learning_rate(lr))


def adagrad(
    lr: Hyperparameter = 1e-2,
    lr_decay: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: Hyperparameter = 1e-10,
    *,
    maximize: bool = False,
) -> Chain:
    """Adagrad, as ``torch.optim.Adagrad``: `scale_by_adagrad`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import adagrad
        >>> adagrad(lr=0.1).transforms[-1]
        ScaleByLearningRate(lr=0.1)

    Source: Duchi, Hazan & Singer, *Adaptive subgradient methods*, JMLR 12, 2011.
    """
    rule = scale_by_adagrad(lr_decay, initial_accumulator_value, eps)
    return chain(*before(weight_decay, maximize), rule, scale_by_learning_rate(lr))


def adadelta(
    lr: Hyperparameter = 1.0,
    rho: Hyperparameter = 0.9,
    eps: Hyperparameter = 1e-6,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> Chain:
    """Adadelta, as ``torch.optim.Adadelta``: `scale_by_adadelta`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import adadelta
        >>> adadelta().transforms
        (ScaleByAdadelta(rho=0.9, eps=1e-06), ScaleByLearningRate(lr=1.0))

    Source: Zeiler, *ADADELTA: an adaptive learning rate method*, 2012.
    """
    rule = scale_by_adadelta(rho, eps)
    return chain(*before(weight_decay, maximize), rule, scale_by_learning_rate(lr))


def rprop(
    lr: Hyperparameter = 1e-2,
    etas: tuple[Hyperparameter, Hyperparameter] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    *,
    maximize: bool = False,
) -> Chain:
    """Rprop, as ``torch.optim.Rprop``: `scale_by_rprop`.

    Example:
        >>> from diffopt_explicit import rprop
        >>> rprop().transforms[0]
        ScaleByRprop(lr=0.01, etas=(0.5, 1.2), step_sizes=(1e-06, 50.0))

    Source: Riedmiller & Braun, *A direct adaptive method for faster backpropagation
    learning*, ICNN 1993.
    """
    return chain(*before(0.0, maximize), scale_by_rprop(lr, etas, step_sizes), scale(-1.0))


def asgd(
    lr: Hyperparameter = 1e-2,
    lambd: Hyperparameter = 1e-4,
    alpha: Hyperparameter = 0.75,
    t0: float = 1e6,
    weight_decay: Hyperparameter = 0.0,
    *,
    maximize: bool = False,
) -> Chain:
    """Averaged stochastic gradient descent, as ``torch.optim.ASGD``: `scale_by_asgd`.

    Hyperparameters are numbers, 0-d tensors (learned if they require grad), schedules, or trees.

    Example:
        >>> from diffopt_explicit import asgd
        >>> asgd().transforms[0]
        ScaleByASGD(lr=0.01, lambd=0.0001, alpha=0.75, t0=1000000.0)

    Source: Polyak & Juditsky, *Acceleration of stochastic approximation by averaging*, SIAM
    J. Control Optim. 30, 1992.
    """
    rule = scale_by_asgd(lr, lambd, alpha, t0)
    return chain(*before(weight_decay, maximize), rule, scale(-1.0))
