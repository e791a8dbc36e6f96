"""`Engine`: solves a multilevel program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from diffopt_implicit._condition import random_states
from diffopt_implicit._equation import detached
from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._multilevel._advance import advance, slopes_of
from diffopt_implicit._multilevel._early_stopping import EarlyStopping, Patience
from diffopt_implicit._multilevel._graph import Graph
from diffopt_implicit._multilevel._level import Level
from diffopt_implicit._multilevel._loggers import Logger
from diffopt_implicit._multilevel._methods import check_methods
from diffopt_implicit._multilevel._problem import Problem
from diffopt_implicit._multilevel._program import Program
from diffopt_implicit._multilevel._randomness import everything, randomness, restore_everything
from diffopt_implicit._multilevel._saved import check_saved
from diffopt_implicit._multilevel._unrolled_steps import UnrolledSteps
from diffopt_implicit._multilevel._variables import detached_copy, overwrite

Tree = Any


class Engine:
    """Solve a multilevel program: problems that are minimized for, and through, each other.

    A problem's turn is: for each problem in its `lower`, from the top to the bottom,
    `unroll_steps` turns; then one step along the total derivative of its loss, in which all
    these solutions move. A round is one turn of each problem at the top.

    Args:
        problems: All problems of the program, in any order.
        validate: Called with the engine after rounds; returns numbers to be logged.
        validate_every: After how many rounds each.
        early_stopping: When to end for the sake of one of these numbers.
        loggers: Each is called as ``(step, problem_name, values)``.
        log_every: After how many steps of a problem each. To log is to wait for the device.
        warm_start: Whether an adjoint begins at that of the problem's last step, for methods
            that iterate.

    Raises:
        NotImplementedError: If a solution is to be differentiated twice by a method that gives
            first derivatives alone.
        TypeError: If a method is missing, or is none.
        ValueError: If the problems do not make up a program: a cycle, a problem that nothing
            reaches, a reference to none, a way of dependence without a method.

    Example:
        A penalty `b` is learned so that the minimum in `a` suits another loss:

        >>> import functools, torch
        >>> from diffopt_implicit import CG
        >>> def training(at, batch):
        ...     return (at.a - 3).square().sum() + at.b.exp() * at.a.square().sum()
        >>> def validation(at, batch):
        ...     return (at.a - 1).square().sum()
        >>> sgd = functools.partial(torch.optim.SGD, lr=0.1)
        >>> engine = Engine(
        ...     [
        ...         Problem("a", torch.zeros(1), training, sgd, upper=["b"], unroll_steps=20),
        ...         Problem("b", torch.tensor(0.0), validation, sgd, lower={"a": CG()}),
        ...     ]
        ... )
        >>> engine.run(200)
        >>> engine.params("a"), engine.params("b").exp()  # 3 / (1 + b) = 1
        (tensor([1.0000]), tensor(2.0000))

    Source:
        Choe, Neiswanger, Xie & Xing, *Betty: an automatic differentiation library for
        multilevel optimization*, ICLR 2023.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        *,
        validate: Callable[[Engine], Mapping[str, float]] | None = None,
        validate_every: int = 1,
        early_stopping: EarlyStopping | None = None,
        loggers: Sequence[Logger] = (),
        log_every: int = 1,
        warm_start: bool = True,
    ) -> None:
        check_positive("validate_every", validate_every)
        check_positive("log_every", log_every)
        if early_stopping is not None and validate is None:
            raise ValueError(
                f"`early_stopping` waits for {early_stopping.measure!r}, and there is no "
                "`validate` to return it. Pass a function `(engine) -> {name: number}`."
            )
        graph = Graph(problems)
        check_methods(graph)
        levels = {name: Level(p, recorded(graph, name)) for name, p in graph.problems.items()}
        self._program = Program(graph, levels, warm_start)
        self._validate, self._validate_every = validate, validate_every
        self._early_stopping, self._patience = early_stopping, Patience()
        self._loggers, self._log_every = tuple(loggers), log_every
        self._turn = 0

    @property
    def rounds(self) -> int:
        """How many rounds are finished."""
        return self._turn // self._program.graph.cycle

    @property
    def stopped(self) -> bool:
        """Whether early stopping has ended the program."""
        stopping = self._early_stopping
        return stopping is not None and self._patience.bad >= stopping.patience

    def run(self, rounds: int) -> None:
        """Go on until so many rounds are finished in all, or early stopping ends the program."""
        while self.rounds < rounds and not self.stopped:
            self.step()

    def step(self) -> str:
        """Give the next problem its turn, and return its name."""
        graph, levels = self._program.graph, self._program.levels
        name = graph.turn(self._turn % graph.cycle)
        level = levels[name]
        level.begin_turn()
        if level.turns >= level.problem.warmup_steps:
            told = advance(self._program, name)
            for low in graph.below[name]:
                levels[low].roll_back()
            if level.count % self._log_every == 0:
                self._log(level.count, name, told)
        level.turns += 1
        self._turn += 1
        if self._turn % (graph.cycle * self._validate_every) == 0:
            self._judge()
        return name

    def params(self, name: str) -> Tree:
        """Return the present parameters of a problem, detached: of a module, by name."""
        variables = self._level(name).variables
        return variables.tree(detached(variables.leaves))

    def gradient(self, name: str, batch: Any = None) -> Tree:
        """Return the total derivative of a problem's loss on a batch; take no step.

        The problems below must have taken a step each: their solutions are differentiated on
        what that was taken on. No adjoint is kept.

        Args:
            name: The problem.
            batch: What its loss is called with.

        Returns:
            A tree like its parameters.
        """
        level, program = self._level(name), self._program
        adjoints = dict(program.adjoints)
        buffers = tuple(level.variables.buffers.values())
        before = detached_copy(buffers)
        with randomness(random_states()):
            gradient = program.gradient(name, slopes_of(program, name, [level.moment(batch)]).of)
        overwrite(buffers, before)
        program.adjoints = adjoints
        return level.variables.tree(gradient)

    def counts(self) -> dict[str, int]:
        """Return how many steps each problem has taken, from the top to the bottom."""
        return {name: level.count for name, level in self._program.levels.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that matters for what comes, to be saved by `torch.save`.

        Of each problem: parameters, buffers, optimizer, schedule, loss scale, the place in its
        data, what its last step was taken on, and where it would roll back to. Of the engine:
        the turn, the adjoints, early stopping, and the random generators of torch, Python and
        NumPy. An engine of the same problems that loads it goes on bit by bit as this one would.
        """
        return {
            "turn": self._turn,
            "patience": asdict(self._patience),
            "adjoints": [[*key, value] for key, value in self._program.adjoints.items()],
            "random": everything(),
            "problems": {k: level.state_dict() for k, level in self._program.levels.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        A loader with `state_dict` and `load_state_dict` is asked for its own place in the data;
        any other is begun anew with the random generators of that time, up to the same batch.

        Raises:
            ValueError: If it is of other problems; nothing is changed then.
        """
        levels = self._program.levels
        check_saved(levels, state)
        for name, level in levels.items():
            level.load_state_dict(state["problems"][name])
        self._turn, self._patience = state["turn"], Patience(**state["patience"])
        self._program.adjoints = {(k, low): value for k, low, value in state["adjoints"]}
        restore_everything(state["random"])

    def _level(self, name: str) -> Level:
        levels = self._program.levels
        if name not in levels:
            raise KeyError(f"There is no problem {name!r}; there are {', '.join(levels)}.")
        return levels[name]

    def _judge(self) -> None:
        """Validate after a round."""
        if self._validate is None:
            return
        values = dict(self._validate(self))
        self._log(self.rounds, "validation", values)
        stopping = self._early_stopping
        if stopping is None:
            return
        if stopping.measure not in values:
            raise ValueError(
                f"`early_stopping` waits for {stopping.measure!r}, and `validate` returned "
                f"{', '.join(map(repr, values)) or 'nothing'}. Let it return that number too."
            )
        self._patience = stopping.judge(float(values[stopping.measure]), self._patience)

    def _log(self, step: int, name: str, values: Mapping[str, float | Tensor]) -> None:
        """Tell all loggers."""
        if self._loggers:
            numbers = {key: float(value) for key, value in values.items()}
            for logger in self._loggers:
                logger(step, name, numbers)


def recorded(graph: Graph, name: str) -> int:
    """Return how many of a problem's last steps are to be taken again."""
    methods = [p.lower[name] for p in graph.problems.values() if name in p.lower]
    wanted = [method.steps for method in methods if isinstance(method, UnrolledSteps)]
    every = graph.problems[name].unroll_steps
    return max((every if steps is None else steps for steps in wanted), default=0)
