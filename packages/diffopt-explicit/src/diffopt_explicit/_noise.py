"""Gaussian noise in updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from diffopt_explicit._hyperparameter import Hyperparameter, check_range, everywhere
from diffopt_explicit._parameters import check_alike, check_params
from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import tree_flatten, tree_unflatten


class AddNoiseState(NamedTuple):
    """Where the noise comes from."""

    step: int  # updates made so far
    seed: int  # drawn at the beginning


@dataclass(frozen=True)
class AddNoise:
    """Updates with Gaussian noise; see `add_noise`."""

    scale: Hyperparameter
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_range("scale", self.scale, 0)

    def init(self, params: Tree) -> AddNoiseState:
        """Draw the seed of all noise to come."""
        check_params(params)
        device = "cpu" if self.generator is None else self.generator.device
        seed = torch.randint(2**62, (), generator=self.generator, device=device)
        return AddNoiseState(0, int(seed))

    def update(
        self, updates: Tree, state: AddNoiseState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, AddNoiseState]:
        """Add this step's noise."""
        check_alike(updates, params)
        leaves, spec = tree_flatten(updates, none_is_leaf=True)
        scales = spec.flatten_up_to(everywhere(self, "scale", state.step, updates))
        for index, (update, scale) in enumerate(zip(leaves, scales, strict=True)):
            if update is None:
                continue
            generator = torch.Generator(update.device)
            generator.manual_seed((state.seed + 1_000_003 * state.step + index) % 2**63)
            noise = torch.randn(
                update.shape, generator=generator, dtype=update.dtype, device=update.device
            )
            leaves[index] = (update + scale * noise).to(update.dtype)
        return tree_unflatten(spec, leaves), state._replace(step=state.step + 1)


def add_noise(scale: Hyperparameter, generator: torch.Generator | None = None) -> AddNoise:
    """Add independent Gaussian noise with standard deviation `scale` to every element.

    Differentiable in the scale. The noise is a function of the state: the same state gives the
    same noise, so that steps can be taken again.

    Args:
        scale: Standard deviation: a number, tensor, schedule or tree; a schedule
            ``lambda step: (eta / (1 + step) ** 0.55) ** 0.5`` anneals it as its paper does.
        generator: What `init` draws the seed from; by default torch's own.

    Example:
        >>> import torch
        >>> from diffopt_explicit import add_noise, chain, sgd
        >>> tx = chain(add_noise(0.01, torch.Generator().manual_seed(0)), sgd(0.1))

    Source: Neelakantan et al., *Adding gradient noise improves learning for very deep networks*,
    2015, section 3.
    """
    return AddNoise(scale, generator)
