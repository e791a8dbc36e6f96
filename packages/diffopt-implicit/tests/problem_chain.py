"""Problems one above the other."""

import functools
from dataclasses import replace

import torch
from diffopt_implicit import CG, Problem
from nested_problems import half

SGD = functools.partial(torch.optim.SGD, lr=0.1)

LOW = Problem("low", torch.zeros(2), lambda at, _: half(at.low - at.high), SGD, upper=["high"])
HIGH = Problem("high", torch.zeros(2), lambda at, _: half(at.low - 1), SGD, lower={"low": CG()})


def chain(**changes):
    """Three levels, each of which the one above differentiates; some fields changed."""
    problems = {
        "one": Problem(
            "one", torch.zeros(2), lambda at, _: half(at.one - at.two), SGD, upper=["two"]
        ),
        "two": Problem(
            "two",
            torch.zeros(2),
            lambda at, _: half(at.one - at.three) + half(at.two),
            SGD,
            upper=["three"],
            lower={"one": CG()},
        ),
        "three": Problem(
            "three", torch.zeros(2), lambda at, _: half(at.two - 1), SGD, lower={"two": CG()}
        ),
    }
    return [replace(p, **changes.get(name, {})) for name, p in problems.items()]
