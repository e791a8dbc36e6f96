"""Which problem depends on which, and in what order they take their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from diffopt_implicit._multilevel._problem import Problem

Names = tuple[str, ...]


class Graph:
    """A checked graph of problems.

    Attributes:
        problems: The problems by name, from the top to the bottom.
        above: For each problem, the others on which its solution depends directly: those that
            its loss, and the losses of the solutions moving with it, take as constants.
        order: For each problem, those that are declared to be above it.
        below: For each problem, those whose solutions move with it, from the top to the bottom.
        cycle: How many turns make up a round, in which each problem at the top has one.

    Raises:
        ValueError: If the problems do not make up a program.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        named = by_name(problems)
        check_references(named)
        self.order = directly_above(named)
        self.problems = {name: named[name] for name in top_down(self.order)}
        self.below = {
            name: tuple(other for other in self.problems if other in problem.lower)
            for name, problem in self.problems.items()
        }
        self.above: dict[str, Names] = {}
        self.turns: dict[str, int] = {}  # that one turn of a problem takes, with those below
        for name in reversed(self.problems):
            self.above[name] = self._above(name)
            self.turns[name] = 1 + sum(self._span(low) for low in self.below[name])
        for name in self.problems:
            self._check_ways(name)
        used = {low for lows in self.below.values() for low in lows}
        self.tops = tuple(name for name in self.problems if name not in used)
        self._check_reached()
        self.cycle = sum(self.turns[top] for top in self.tops)

    def turn(self, position: int) -> str:
        """Return whose turn it is, `position` turns after the start of a round."""
        for top in self.tops[:-1]:
            if position < self.turns[top]:
                return self._turn_below(top, position)
            position -= self.turns[top]
        return self._turn_below(self.tops[-1], position)

    def _turn_below(self, name: str, position: int) -> str:
        for low in self.below[name]:
            span = self._span(low)
            if position < span:
                return self._turn_below(low, position % self.turns[low])
            position -= span
        return name

    def _span(self, name: str) -> int:
        return self.problems[name].unroll_steps * self.turns[name]

    def _above(self, name: str) -> Names:
        inner = {name, *self.below[name]}
        constants = {*self.problems[name].upper}
        constants.update(other for low in self.below[name] for other in self.above[low])
        return tuple(other for other in self.problems if other in constants - inner)

    def descendants(self, name: str) -> set[str]:
        """Return all problems whose solutions move with one, or with one of these."""
        return reachable(name, self.below)

    def _check_ways(self, name: str) -> None:
        """Refuse solutions that do not depend on a problem, or do so in ways that it ignores."""
        for low in self.below[name]:
            if name not in reachable(low, self.above):
                raise ValueError(
                    f"`{name}` names `{low}` in `lower`, and the solution of `{low}` does not "
                    f"depend on `{name}`. Add '{name}' to `upper` of `{low}` if its loss reads "
                    f"it, or move '{low}' to `upper` of `{name}` if it is a constant there."
                )
            for between in self.above[low]:
                lost = between != name and between not in self.below[name]
                if lost and name in reachable(between, self.order):
                    raise ValueError(
                        f"There is no method for `{between}` in `{name}`: `{name}` moves "
                        f"`{between}`, which moves `{low}`, and this part of its gradient would be "
                        f"lost. Add '{between}' to `lower` of `{name}`, with a method such as "
                        "`CG(10)`."
                    )

    def _check_reached(self) -> None:
        for top in self.tops:
            upper = self.problems[top].upper
            if upper:
                raise ValueError(
                    f"`{top}` is unreachable: its solution depends on `{upper[0]}`, and no problem "
                    f"names it in `lower`, so nothing would be differentiated through it. Add it "
                    f"to `lower` of `{upper[0]}`, as {{'{top}': CG(10)}}."
                )


def reachable(name: str, edges: Mapping[str, Names]) -> set[str]:
    """Return what can be reached from a node, itself left out."""
    found: set[str] = set()
    todo = [*edges[name]]
    while todo:
        other = todo.pop()
        if other not in found:
            found.add(other)
            todo.extend(edges[other])
    return found


def by_name(problems: Sequence[Problem]) -> dict[str, Problem]:
    """Put problems into a dictionary."""
    named: dict[str, Problem] = {}
    for problem in problems:
        if not isinstance(problem, Problem):
            raise TypeError(
                f"An `Engine` is made of a sequence of `Problem`s, got {type(problem).__name__}."
            )
        if problem.name in named:
            raise ValueError(f"Two problems have the name `{problem.name}`: rename one.")
        named[problem.name] = problem
    if not named:
        raise ValueError("There is no problem to solve: pass at least one `Problem`.")
    return named


def check_references(named: dict[str, Problem]) -> None:
    """Refuse references to problems that are not there, or to oneself."""
    for name, problem in named.items():
        for field, others in (("upper", problem.upper), ("lower", problem.lower)):
            for other in others:
                if other == name:
                    raise ValueError(
                        f"`{name}` names itself in `{field}`. Its loss reads its own parameters "
                        f"as `at.{name}` anyway: remove it there."
                    )
                if other not in named:
                    raise ValueError(
                        f"`{field}` of `{name}` names `{other}`, and there is no such problem. The "
                        f"problems are {', '.join(named)}."
                    )


def directly_above(named: Mapping[str, Problem]) -> dict[str, Names]:
    """Return for each problem those that it names in `upper`, or that name it in `lower`."""
    return {
        name: (*problem.upper, *(key for key, other in named.items() if name in other.lower))
        for name, problem in named.items()
    }


def top_down(order: Mapping[str, Names]) -> Names:
    """Sort names so that a problem comes after all that are above it."""
    try:
        return tuple(TopologicalSorter(order).static_order())
    except CycleError as error:
        raise ValueError(
            f"The problems make a cycle, so none is the lowest: {' above '.join(error.args[1])}. "
            "Of two problems that name each other, the one that is solved first, for a fixed value "
            "of the other, names it in `upper`, and the other names it in `lower`."
        ) from None
