"""What iterative solvers have in common: `init_state`, `update` and `run`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pytree_core import tree_leaves
from torch import Tensor

from diffopt_implicit._linear_info import OnFailure, check_on_failure
from diffopt_implicit._linear_system import Tree, check_nonnegative, check_positive, safe_norm
from diffopt_implicit._solvers._adjoints import Adjoint, AdjointName, Unroll, chosen_adjoint
from diffopt_implicit._solvers._status import SolverStatus, ended, report, running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import any_true, by_example, is_tracked, nan_largest, outside_graphs


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """The base of iterative solvers, frozen dataclasses; these fields are passed by name.

    A state is a named tuple of tensors. Its `iter_num` counts updates, `error` is what is held
    against `tol`, `status` is a `SolverStatus`, and ``num_fun_eval``, ``num_grad_eval`` and the
    like count the calls that the iterations have made of what the solver was given. Under
    `torch.func.vmap` each example has its own, and stays where it is once it is finished.

    Attributes:
        tol: Stop once the state's `error` is at most this; what is measured, and whether
            against anything, stands with each solver.
        maxiter: At most so many updates.
        adjoint: How `run` gives derivatives: ``"implicit"``, those of the solution by the
            implicit function theorem; ``"unroll"``, those of the iterations, which autograd
            then records; ``"checkpoint"``, the same, of which only some iterates are kept and
            the others computed again; or an `Adjoint`, like ``Implicit(solve=solve_cg)``.
        on_failure: What to do when an example ends without having reached `tol`: ``"raise"`` a
            `SolverError`, ``"warn"`` with a `SolverWarning`, or ``"ignore"``.
        callback: Called as ``callback(params, state)`` after each update.
        verbose: Whether to print a line an update; each waits for the device.

    Example:
        >>> import torch
        >>> from diffopt_implicit import FixedPointIteration, SolverStatus
        >>> solver = FixedPointIteration(torch.cos, tol=1e-5)
        >>> params = torch.tensor(1.0)
        >>> state = solver.init_state(params)
        >>> while state.status == SolverStatus.RUNNING:
        ...     params, state = solver.update(params, state)
        >>> params
        tensor(0.7391)
    """

    tol: float = 1e-5
    maxiter: int = 500
    adjoint: AdjointName | Adjoint = "implicit"
    on_failure: OnFailure = "warn"
    callback: Callable[[Tree, Any], object] | None = None
    verbose: bool = False

    keeps_gradient: ClassVar[bool] = False  # between updates, of the same function

    def __post_init__(self) -> None:
        """Refuse options that mean nothing."""
        check_nonnegative("tol", self.tol)
        check_positive("maxiter", self.maxiter)
        check_on_failure(self.on_failure)
        chosen_adjoint(self.adjoint)

    @abstractmethod
    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> Any:
        """Return the state before the first update."""

    @abstractmethod
    def update(self, params: Tree, state: Any, *args: Any, **kwargs: Any) -> OptStep:
        """Take one step; examples that are finished stay where they are."""

    @abstractmethod
    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return what vanishes at the solution, like the parameters."""

    def l2_optimality_error(self, params: Tree, *args: Any, **kwargs: Any) -> Tensor:
        """Return the Euclidean norm of `optimality_fun`."""
        leaves = tree_leaves(self.optimality_fun(params, *args, **kwargs))
        return safe_norm(torch.cat([leaf.reshape(-1) for leaf in leaves]))

    @outside_graphs
    def run(self, init_params: Tree, *args: Any, **kwargs: Any) -> OptStep:
        """Update until all examples are finished.

        Args:
            init_params: Where to start, any tree of real floating-point tensors.
            *args: What the solved function takes further, any trees.
            **kwargs: The same.

        Returns:
            The solution, differentiable in the arguments as `adjoint` says, and the last state.
            With ``"implicit"`` the state carries no derivatives. Where a derivative is wanted, the
            function is evaluated once more than the state counts, to see that it is one.

        Raises:
            SolverError: If the tolerance is not reached, where told to raise.
            ValueError: If a tensor that requires grad reaches the solver by closure.
        """
        return chosen_adjoint(self.adjoint)(self, init_params, args, kwargs)

    def iterate(self, init_params: Tree, *args: Any, **kwargs: Any) -> OptStep:
        """Do what `run` does, with no derivatives but those that autograd records.

        Args:
            init_params: As of `run`.
            *args: As of `run`.
            **kwargs: As of `run`.

        Returns:
            The solution and the last state.

        Raises:
            SolverError: If the tolerance is not reached, where told to raise.
        """
        begun = OptStep(init_params, self.init_state(init_params, *args, **kwargs))
        return self.finished(self.advanced(begun, self.maxiter, *args, **kwargs))

    def advanced(self, step: OptStep, count: int, /, *args: Any, **kwargs: Any) -> OptStep:
        """Take up to `count` updates, until all examples are finished."""
        for _ in range(count):
            if not any_true(running(step.state)):
                break
            step = self.update(step.params, step.state, *args, **kwargs)
            self._notice(step)
        return step

    def finished(self, step: OptStep) -> OptStep:
        """Say of what still runs that it reached `maxiter`, and report failures."""
        status = ended(step.state.status, running(step.state), SolverStatus.MAXITER)
        state = step.state._replace(status=status)
        report(type(self).__name__, state, self.tol, self.maxiter, self.on_failure)
        return OptStep(step.params, state)

    def run_iterator(
        self, init_params: Tree, iterator: Iterable[Any], *args: Any, **kwargs: Any
    ) -> OptStep:
        """Update with ``data=`` of an iterator, until it ends, or `maxiter`, or all is finished.

        Args:
            init_params: As of `run`.
            iterator: What to pass as the keyword argument ``data``, an item an update. The first
                item is seen by `init_state` and by the first update.
            *args: As of `run`.
            **kwargs: As of `run`.

        Returns:
            The last parameters and state. The end of the iterator is no failure. There is no
            equation that minibatches solve: derivatives are those of the iterations, with
            ``adjoint="unroll"``.

        Raises:
            SolverError: If the iterations fail, where told to raise.
            TypeError: If the solver keeps gradients from one update to the next, which are those
                of one function.
            ValueError: If the iterator is empty, or if derivatives are wanted and `adjoint` is
                not ``"unroll"``.
        """
        if self.keeps_gradient:
            raise TypeError(
                f"`{type(self).__name__}` compares gradients of one function, and each item of "
                "`iterator` makes it another. Use `OptimizerSolver`, `PolyakSGD`, `ArmijoSGD` or "
                "`GradientDescent`, or pass the whole data to `run`."
            )
        step, last = None, range(self.maxiter)
        for _, data in zip(last, iterator, strict=False):
            self._refuse_lost_derivatives((init_params, data, args, kwargs))
            if step is None:
                step = OptStep(
                    init_params, self.init_state(init_params, *args, data=data, **kwargs)
                )
            if not any_true(running(step.state)):
                break
            step = self.update(step.params, step.state, *args, data=data, **kwargs)
            self._notice(step)
        if step is None:
            raise ValueError("`iterator` has no items: `run_iterator` needs at least one.")
        if any_true(step.state.status > SolverStatus.MAXITER):
            return self.finished(step)
        return step

    def _refuse_lost_derivatives(self, inputs: Tree) -> None:
        if isinstance(chosen_adjoint(self.adjoint), Unroll):
            return
        if any(isinstance(leaf, Tensor) and is_tracked(leaf) for leaf in tree_leaves(inputs)):
            raise ValueError(
                "`run_iterator` got a tensor that requires grad, and minibatches solve no equation "
                "to differentiate. Set `adjoint='unroll'` for the derivatives of the iterations, "
                "or detach what is constant."
            )

    def _notice(self, step: OptStep) -> None:
        if self.callback is not None:
            self.callback(step.params, step.state)
        if self.verbose:
            examples = by_example(step.state.iter_num, step.state.error)
            count, error = (max(row, key=nan_largest) for row in zip(*examples, strict=True))
            print(f"{type(self).__name__}: iteration {count:.0f}, error {error:.3g}")
