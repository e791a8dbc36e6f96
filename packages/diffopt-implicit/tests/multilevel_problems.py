"""Problems of a program, in a line each."""

import functools

import torch
from diffopt_implicit import (
    CG,
    Engine,
    Problem,
)

SGD = functools.partial(torch.optim.SGD, lr=0.1)
half = lambda x: x.square().sum() / 2


def follow(name, other):
    """A loss whose minimum is the value of another problem."""
    return lambda at, _: half(getattr(at, name) - getattr(at, other))


def pair(low=None, high=None, **options):
    """A bilevel program that pulls `high` to 1 through `low`."""
    low = {"params": torch.zeros(2), "optimizer": SGD, "upper": ["high"], **(low or {})}
    high = {"params": torch.zeros(2), "optimizer": SGD, "lower": {"low": CG()}, **(high or {})}
    return Engine(
        [
            Problem("low", loss=low.pop("loss", follow("low", "high")), **low),
            Problem("high", loss=high.pop("loss", lambda at, _: half(at.low - 1)), **high),
        ],
        **options,
    )
