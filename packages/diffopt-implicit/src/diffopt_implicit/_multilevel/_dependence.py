"""Whether the losses of a program depend on what they are said to depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from diffopt_implicit._closure import graph_leaves, tracked_names
from diffopt_implicit._multilevel._graph import Graph
from diffopt_implicit._multilevel._level import Level
from diffopt_implicit._multilevel._problem import Problem
from diffopt_implicit._torch import Tensors

Slope = Tensor | None


def note_dependence(
    graph: Graph, levels: dict[str, Level], name: str, slopes: Mapping[str, Sequence[Slope]]
) -> None:
    """Note which parameters a loss reads at its first step, and refuse what nothing reads."""
    level = levels[name]
    level.reads = {
        other: {i for i, slope in enumerate(found) if slope is not None}
        for other, found in slopes.items()
    }
    for other in level.problem.upper:
        if not level.reads[other]:
            raise ValueError(
                f"The loss of `{name}` does not depend on `{other}`, which it names in `upper`. "
                f"Read it as `at.{other}` and do not detach it, or leave it out of `upper`."
            )
    for low in graph.below[name]:
        if not any(level.reads[low] or low in graph.above[other] for other in graph.below[name]):
            raise ValueError(
                f"The loss of `{name}` does not depend on the solution of `{low}`, which it names "
                f"in `lower`. Read it as `at.{low}` and do not detach it, or leave it out."
            )
    check_all_reached(graph, levels, name)


def check_closure(problem: Problem, loss: Tensor, inputs: Tensors) -> None:
    """Refuse a loss that uses tensors which require grad and belong to no problem that it names."""
    known = {id(tensor) for tensor in inputs}
    if any(id(leaf) not in known for leaf in graph_leaves([loss.grad_fn])):
        names = ", ".join(tracked_names(problem.loss)) or "out of reach of their names"
        raise ValueError(
            f"The loss of `{problem.name}` uses tensors that require grad and that it does not "
            f"read from its first argument, so their gradient would be lost: {names}. Read the "
            f"parameters of a problem as `at.NAME`, also its own, as `at.{problem.name}`; detach "
            "what is a constant."
        )


def check_all_reached(graph: Graph, levels: dict[str, Level], name: str) -> None:
    """Refuse parameters that no loss reads, as their gradient would be zero for ever."""
    readers = [levels[other] for other in (name, *graph.descendants(name))]
    if any(reader.count == 0 and reader is not levels[name] for reader in readers):
        return  # nothing is known of their losses yet
    reached = set().union(*(reader.reads.get(name, ()) for reader in readers))
    missed = [key for i, key in enumerate(levels[name].variables.names) if i not in reached]
    if missed:
        raise ValueError(
            f"The parameters {', '.join(missed)} of `{name}` have no gradient: neither its own "
            "loss depends on them, nor that of a problem below. Take them out of `params`, or "
            "freeze them with `requires_grad_(False)`."
        )
