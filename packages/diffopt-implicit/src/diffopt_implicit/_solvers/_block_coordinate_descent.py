"""Block coordinate descent: one block after the other, by proximal gradient steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pytree_core import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch import Tensor

from diffopt_implicit import proximal
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree, check_positive
from diffopt_implicit._solvers._descent import length
from diffopt_implicit._solvers._gradient_step import Step, StepState, first_state, taken
from diffopt_implicit._solvers._objective import Evaluation, Objective, gradient
from diffopt_implicit._solvers._proximal_gradient import Problem, sorted_arguments
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._solvers._step_size import (
    StepSize,
    Trial,
    check_step_size,
    first_sizes,
    given_step,
    quadratic_bound,
    searched_step,
)


@dataclass(frozen=True)
class BlockCoordinateDescent(Solver):
    """Minimize ``f(x) + sum_b g(x_b)``, one block a time: ``x_b <- prox(x_b - t_b grad_b f(x))``.

    Blocks are the leaves of `params`; of a single tensor, its rows. An update goes through all of
    them in order, each seeing the ones before it already moved. Called as ``run(init_params,
    hyperparams_prox, *args, **kwargs)``.

    Attributes:
        fun: The smooth ``f``, ``(params, *args, **kwargs) ->`` a scalar.
        block_prox: The proximal operator of ``g``: ``(block, *hyperparams_prox, scaling=t_b) ->``
            like the block; default that of no penalty.
        stepsize: As of `GradientDescent`; None searches one for each block.
        has_aux: Whether `fun` returns ``(scalar, aux)``.
        maxls: At most so many evaluations a search.
        tol: Stop where the Euclidean norm of all ``(old x_b - new x_b) / t_b`` of an update is at
            most this.

    Example:
        >>> import torch
        >>> solver = BlockCoordinateDescent(
        ...     lambda x, y: 0.5 * (x - y).square().sum(), proximal.lasso
        ... )
        >>> y = torch.tensor([[3.0], [0.5], [-1.0]])
        >>> solver.run(torch.zeros(3, 1), 0.7, y).params.flatten()
        tensor([ 2.3000,  0.0000, -0.3000])

    Source:
        Tseng & Yun, *A coordinate gradient descent method for nonsmooth separable minimization*,
        Math. Programming 117, 2009.
    """

    fun: Callable[..., Any]
    block_prox: Callable[..., Tree] = proximal.none
    stepsize: StepSize | None = field(default=None, kw_only=True)
    has_aux: bool = field(default=False, kw_only=True)
    maxls: int = field(default=40, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step_size(self.stepsize)
        check_positive("maxls", self.maxls)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> StepState:
        """Return the state before the first update: nothing is evaluated, the error infinite."""
        state = first_state(init_params)
        blocks = Blocks.of(init_params).apart(init_params)
        return state._replace(memory=state.stepsize.expand(len(blocks)))

    def update(self, params: Tree, state: StepState, *args: Any, **kwargs: Any) -> OptStep:
        """Go through the blocks once."""
        space = Coordinates.of(params, "`params`")
        x = space.vector(params, "`params`")
        problem = sorted_arguments("hyperparams_prox", args, kwargs)
        layout = Blocks.of(params)
        blocks = layout.apart(params)
        live = running(state)
        if not blocks:
            raise ValueError("`params` has no blocks: it needs at least one leaf or row.")
        at = Evaluation(state.value, x, state.aux)
        sizes, squares, calls, failed = [], [], 0, torch.zeros_like(live)
        for i, block in enumerate(blocks):
            at, size, new, lost, trials = self._stepped(layout, blocks, i, problem, state)
            blocks[i] = new
            squares.append((length((block - new).reshape(-1)) / size.detach()).square())
            sizes.append(size)
            calls, failed = calls + trials + live, failed | lost
        error = torch.stack(squares).sum().sqrt()
        new = space.vector(layout.joined(blocks), "`block_prox`")
        # `taken` counts one evaluation of value and gradient, of which there was one a block.
        step = Step(new, sizes[-1], error, torch.stack(sizes), failed, calls - 1 * live)
        moved, after = taken(step, state, x, at, self.tol)
        grads = state.num_grad_eval + len(blocks) * live
        return OptStep(space.tree(moved), after._replace(num_grad_eval=grads))

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return ``params - prox(params - gradient)``, block by block."""
        hyperparams, args, kwargs = sorted_arguments("hyperparams_prox", args, kwargs)
        grad = gradient(self.fun, self.has_aux, params, args, kwargs)
        there = tree_map(lambda x, g: x - g, params, grad)
        layout = Blocks.of(params)
        images = [self.block_prox(b, *hyperparams, scaling=1.0) for b in layout.apart(there)]
        return tree_map(lambda x, z: x - z, params, layout.joined(images))

    def _stepped(
        self, layout: Blocks, blocks: list[Tensor], i: int, problem: Problem, state: StepState
    ) -> tuple[Evaluation, Tensor, Tensor, Tensor, Tensor]:
        def fun(block: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self.fun(layout.joined([*blocks[:i], block, *blocks[i + 1 :]]), *args, **kwargs)

        space = Coordinates.of(blocks[i], "`params`")
        objective = Objective(fun, self.has_aux, space, problem.args, problem.kwargs)
        x = space.vector(blocks[i], "`params`")
        at = objective.at(x)
        live = running(state) & at.value.isfinite()

        def attempt(size: Tensor) -> Trial:
            there = space.tree(x - size * at.grad)
            new = self.block_prox(there, *problem.hyperparams, scaling=size)
            vector = space.vector(new, "`block_prox`")
            searched = self.stepsize is None
            return Trial(size, vector, objective.value(vector)[0] if searched else at.value, None)

        if self.stepsize is not None:
            trial = attempt(given_step(self.stepsize, state.iter_num, state.error))
            none = torch.zeros_like(live)
            return at, trial.stepsize, space.tree(trial.x), none, 0 * state.iter_num
        first, largest = first_sizes(state.memory[i])
        bound = partial(quadratic_bound, x, at.value, at.grad, largest)
        trial, failed, trials = searched_step(
            attempt, bound, at.value, first, live, decrease=0.5, maxls=self.maxls
        )
        return at, trial.stepsize, space.tree(trial.x), failed, trials


@dataclass(frozen=True)
class Blocks:
    """How parameters fall into blocks.

    Attributes:
        spec: The structure of the tree.
        rows: Whether it is a single tensor, whose rows are the blocks.
    """

    spec: Any
    rows: bool

    @classmethod
    def of(cls, params: Tree) -> Blocks:
        """Describe `params`."""
        leaves, spec = tree_flatten(params)
        return cls(spec, len(leaves) == 1 and leaves[0].ndim > 0)

    def apart(self, params: Tree) -> list[Tensor]:
        """Return the blocks."""
        leaves = tree_leaves(params)
        return list(leaves[0].unbind()) if self.rows else leaves

    def joined(self, blocks: list[Tensor]) -> Tree:
        """Return the parameters."""
        return tree_unflatten(self.spec, [torch.stack(blocks)] if self.rows else blocks)
