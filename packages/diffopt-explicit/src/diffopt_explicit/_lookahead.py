"""Slow weights behind fast ones, and averages of updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from diffopt_explicit._hyperparameter import Hyperparameter, check_range, everywhere
from diffopt_explicit._parameters import required
from diffopt_explicit._rule import Rule, Slots, numbers, power
from diffopt_explicit._transform import Transform, Tree
from diffopt_explicit._trees import advance, map_present


@dataclass(frozen=True)
class Ema(Rule):
    """The decaying mean of updates; see `ema`."""

    decay: Hyperparameter
    debias: bool = True

    def __post_init__(self) -> None:
        check_range("decay", self.decay, 0, 1)

    def begin(self, zeros: Tensor) -> Slots:
        """Return a zero mean."""
        return (zeros,)

    def apply(self, g: Tensor, slots: Slots, t: int, p: Tensor) -> tuple[Tensor, Slots]:
        """Take one step."""
        (decay,) = numbers(self.decay)
        mean = decay * slots[0] + (1 - decay) * g
        return mean / (1 - power(decay, t)) if self.debias else mean, (mean,)


class LookaheadState(NamedTuple):
    """What `Lookahead` remembers between steps."""

    step: int  # updates made so far
    slow: Tree  # the slow weights
    inner: Any  # the state of the transform that moves the fast ones


@dataclass(frozen=True)
class Lookahead:
    """Fast weights that are drawn back to slow ones; see `lookahead`."""

    transform: Transform
    sync_period: int = 6
    slow_step_size: Hyperparameter = 0.5

    def __post_init__(self) -> None:
        if self.sync_period < 1:
            raise ValueError(f"`sync_period` must be at least 1, got {self.sync_period}.")
        check_range("slow_step_size", self.slow_step_size, 0)

    def init(self, params: Tree) -> LookaheadState:
        """Return the state before the first step, with `params` as the slow weights."""
        return LookaheadState(0, params, self.transform.init(params))

    def update(
        self, updates: Tree, state: LookaheadState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, LookaheadState]:
        """Move the fast weights, and after every period both."""
        params = required(params, "`lookahead`")
        updates, inner = self.transform.update(updates, state.inner, params, **extra)
        slow = state.slow
        if (state.step + 1) % self.sync_period == 0:
            rates = everywhere(self, "slow_step_size", state.step, updates)

            def draw(slow: Tensor, update: Tensor, fast: Tensor, rate: Any) -> Tensor:
                return (slow + rate * (fast + update - slow)).to(fast.dtype)

            slow = advance(draw, slow, updates, params, rates)
            updates = map_present(lambda _, to, fast: to - fast, updates, slow, params)
        return updates, LookaheadState(state.step + 1, slow, inner)


def ema(decay: Hyperparameter, debias: bool = True) -> Ema:
    """Average updates with exponentially decaying weight.

    For an incoming update ``g`` in a parameter's step ``t = 1, 2, ...``::

        m <- decay * m + (1 - decay) * g
        update = m / (1 - power(decay, t)) if debias else m

    Args:
        decay: Share of the mean kept at each step, in [0, 1).
        debias: Divide by the sum of the weights, as Adam does.

    Example:
        >>> import torch
        >>> from diffopt_explicit import ema
        >>> tx = ema(0.5)
        >>> first, state = tx.update([torch.tensor(3.0)], tx.init([torch.tensor(0.0)]))
        >>> first, tx.update([torch.tensor(0.0)], state)[0]
        ([tensor(3.)], [tensor(1.)])

    Source: Kingma & Ba, *Adam: a method for stochastic optimization*, ICLR 2015, section 3.
    """
    return Ema(decay, debias)


def lookahead(
    transform: Transform, sync_period: int = 6, slow_step_size: Hyperparameter = 0.5
) -> Lookahead:
    """Let fast weights run ahead, and draw them back to slow weights after every period.

    The parameters are the fast weights ``p``; the slow weights ``s``, first the same, are in the
    state. After every `sync_period` updates::

        s <- s + slow_step_size * (p - s)
        p <- s

    Args:
        transform: What moves the fast weights.
        sync_period: Updates from one draw to the next.
        slow_step_size: How far the slow weights go: a number, tensor, schedule or tree.

    Raises:
        ValueError: For a period below 1 or a negative step size.

    Example:
        >>> import torch
        >>> from diffopt_explicit import lookahead, sgd, unroll
        >>> tx = lookahead(sgd(1.0), sync_period=2, slow_step_size=0.5)
        >>> unroll(lambda w: w.sum(), tx, torch.zeros(1), steps=2).params
        tensor([-1.])

    Source: Zhang et al., *Lookahead optimizer: k steps forward, 1 step back*, NeurIPS 2019,
    algorithm 1.
    """
    return Lookahead(transform, sync_period, slow_step_size)
