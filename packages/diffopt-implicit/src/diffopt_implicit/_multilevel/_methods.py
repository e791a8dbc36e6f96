"""Which methods can differentiate which solutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from diffopt_implicit._adjoint_method import AdjointMethod
from diffopt_implicit._first_order_methods import BOME
from diffopt_implicit._multilevel._descent import is_transform
from diffopt_implicit._multilevel._graph import Graph
from diffopt_implicit._multilevel._problem import Problem
from diffopt_implicit._multilevel._unrolled_steps import UnrolledSteps


def check_methods(graph: Graph) -> None:
    """Refuse methods that are none, or would give wrong derivatives where they stand."""
    for name, problem in graph.problems.items():
        for low, method in problem.lower.items():
            check_method(name, graph.problems[low], method)
            check_statistics(graph, low)
            check_kept(graph, name, low)
            # The derivative of a solution is taken of a loss that itself moves other solutions.
            if any(name in other.lower for other in graph.problems.values()):
                check_differentiable(name, low, method)


def check_method(name: str, low: Problem, method: Any) -> None:
    """Refuse what is no method for a solution."""
    where = f"the solution of `{low.name}` in `{name}`"
    if isinstance(method, type) or not (
        isinstance(method, UnrolledSteps) or hasattr(method, "estimate")
    ):
        raise TypeError(
            f"There is no method for {where}: `lower` must give one, such as `CG(10)` or "
            f"`UnrolledSteps()`, got {method!r}."
        )
    if isinstance(method, BOME):
        raise ValueError(
            f"`BOME` is no method for {where}: it moves the parameters below itself, and they are "
            "solved here. Use `F2SA`, or `hypergradient` in a loop of your own."
        )
    if isinstance(method, UnrolledSteps):
        check_unroll(where, low, method)


def check_unroll(where: str, low: Problem, method: UnrolledSteps) -> None:
    """Refuse unrolls of steps that cannot be taken again."""
    if not is_transform(low.optimizer):
        raise TypeError(
            f"`UnrolledSteps` of {where} needs an optimizer that is a function: a transform with "
            "`init` and `update`. `diffopt_explicit.from_torch` makes one of torch such."
        )
    if (method.steps or 0) > low.unroll_steps:
        raise ValueError(
            f"`UnrolledSteps({method.steps})` of {where}: it takes {low.unroll_steps} steps each "
            "time. Raise its `unroll_steps`, or unroll less."
        )
    if low.lower:
        raise NotImplementedError(
            f"`UnrolledSteps` of {where}: its own steps differentiate other solutions, which are "
            "not taken again with it. Use a method such as `CG(10)`."
        )
    if low.autocast is torch.float16:
        raise NotImplementedError(
            f"`UnrolledSteps` of {where}: its float16 steps are scaled, and are not taken again as "
            "they were. Use torch.bfloat16, or a method such as `CG(10)`."
        )


def check_kept(graph: Graph, name: str, low: str) -> None:
    """Refuse to roll back what a derivative has yet to be taken at."""
    for gone in graph.below[low]:
        if graph.problems[gone].roll_back and gone not in graph.below[name]:
            raise ValueError(
                f"`{gone}` is rolled back after each step of `{low}`, and `{name}` differentiates "
                f"the solution of `{low}` where that of `{gone}` is still there. Leave out its "
                f"`roll_back`, or add '{gone}' to `lower` of `{name}`."
            )


def check_differentiable(name: str, low: str, method: Any) -> None:
    """Refuse methods whose derivatives are not to be had, where they are needed."""
    if not isinstance(method, (AdjointMethod, UnrolledSteps)):
        raise NotImplementedError(
            f"`{type(method).__name__}` differentiates the solution of `{low}` in `{name}`, whose "
            "own solution is differentiated by a problem above. That takes second derivatives, "
            f"which {method} does not give. Use `CG()` or another method that solves the adjoint "
            "system."
        )


def check_statistics(graph: Graph, low: str) -> None:
    """Refuse batch norm in training mode where a loss is evaluated more than once."""
    problem = graph.problems[low]
    for name in (low, *problem.upper, *problem.lower):
        params = graph.problems[name].params
        if isinstance(params, nn.Module) and any(
            isinstance(part, _NormBase) and part.training and part.track_running_stats
            for part in params.modules()
        ):
            raise ValueError(
                f"The solution of `{low}` cannot be differentiated: the batch norm of `{name}` "
                "writes its running statistics each time the loss is evaluated. Call `.eval()` on "
                "it, build it with `track_running_stats=False`, or use group norm."
            )
