"""Adam, with coupled or decoupled weight decay."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, NamedTuple

from pytree_core import tree_flatten, tree_map, tree_unflatten

from diffopt_explicit._hyperparameter import Hyperparameter, at_step, check_range, is_zero
from diffopt_explicit._scale import is_tree
from diffopt_explicit._stepwise import required
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import map_present, zeros_like

# A broken installation of the kernels must not pass for none: only their absence is looked for.
if importlib.util.find_spec("diffopt_kernels"):
    from diffopt_kernels import adam_step
else:
    from diffopt_explicit._composed_adam import adam_step


class AdamState(NamedTuple):
    """What Adam remembers between steps."""

    step: int  # updates made so far
    counts: Tree  # of each parameter, the updates that it took part in
    exp_avg: Tree  # first moments, like the parameters
    exp_avg_sq: Tree  # second moments, like the parameters


@dataclass(frozen=True)
class FusedAdam:
    """Adam, from gradients to the updates of the parameters, in one call for all of them.

    For a gradient ``g`` in a parameter's step ``t = 1, 2, ...``::

        g <- -g  if maximize;   g <- g + weight_decay * p  unless decoupled
        m <- beta1 * m + (1 - beta1) * g
        v <- beta2 * v + (1 - beta2) * g**2
        update = -lr * m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t) + eps_root) + eps)
        update <- update - lr * weight_decay * p  if decoupled

    Attributes:
        lr: Learning rate: a number, 0-d tensor, schedule, or tree shaped like the parameters.
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Strength of the decay.
        decoupled: Decay the weights themselves (AdamW) instead of penalizing them.
        eps_root: Added under the root.
        maximize: Ascend.
    """

    lr: Hyperparameter | Tree = 1e-3
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999)
    eps: Hyperparameter = 1e-8
    weight_decay: Hyperparameter = 0.0
    decoupled: bool = False
    eps_root: Hyperparameter = 0.0
    maximize: bool = False

    def __post_init__(self) -> None:
        if not is_tree(self.lr):
            check_range("lr", self.lr, 0)
        for index, beta in enumerate(self.betas):
            check_range(f"betas[{index}]", beta, 0, 1)
        check_range("eps", self.eps, 0)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("eps_root", self.eps_root, 0)

    def init(self, params: Tree) -> AdamState:
        """Return zero moments."""
        counts = tree_map(lambda _: 0, params)
        return AdamState(0, counts, zeros_like(params), zeros_like(params))

    def update(
        self, updates: Tree, state: AdamState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, AdamState]:
        """Take one Adam step."""
        decays = not is_zero(self.weight_decay)
        if decays:
            params = required(params, "Weight decay")
        grads, spec = tree_flatten(updates, none_is_leaf=True)
        counts, *moments = (spec.flatten_up_to(tree) for tree in state[1:])
        present = [index for index, grad in enumerate(grads) if grad is not None]
        for index in present:
            counts[index] += 1

        def pick(leaves: list[Any]) -> list[Any]:
            return [leaves[index] for index in present]

        one_rate = not is_tree(self.lr)
        results = adam_step(
            *(pick(leaves) for leaves in (grads, *moments, counts)),
            lr=at_step(self.lr, state.step) if one_rate else 1.0,
            betas=(at_step(self.betas[0], state.step), at_step(self.betas[1], state.step)),
            eps=at_step(self.eps, state.step),
            eps_root=at_step(self.eps_root, state.step),
            weight_decay=at_step(self.weight_decay, state.step),
            params=pick(spec.flatten_up_to(params)) if decays else None,
            decoupled=self.decoupled,
            maximize=self.maximize,
        )
        for leaves, new_leaves in zip((grads, *moments), results, strict=True):
            for index, new in zip(present, new_leaves, strict=True):
                leaves[index] = new
        moved, counts, *moments = (
            tree_unflatten(spec, leaves) for leaves in (grads, counts, *moments)
        )
        if not one_rate:
            moved = map_present(lambda update, rate: rate * update, moved, self.lr)
        return moved, AdamState(state.step + 1, counts, *moments)
