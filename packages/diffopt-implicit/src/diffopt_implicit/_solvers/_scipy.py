"""The way to SciPy's solvers and back."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._solvers._implicit_only import check_implicit
from diffopt_implicit._solvers._jacobian import VectorFunction
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, report
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import outside_transforms, plain, vjp


class ScipyState(NamedTuple):
    """How a solver of SciPy ended.

    Attributes:
        iter_num: Int64 scalar, its iterations, or calls where it does not count these.
        error: Scalar, the Euclidean norm of `optimality_fun` at the end.
        status: Int64 scalar, a `SolverStatus`; ``CONVERGED`` where SciPy says so.
        num_fun_eval: Int64 scalar, calls of the function, with or without derivatives.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    num_fun_eval: Tensor


class Bridge:
    """A function of torch as SciPy calls it: of vectors in float64, on the CPU.

    Attributes:
        function: The function of vectors.
        like: The first vector, in the dtype and on the device that `function` takes.
        name: Of the solver, for errors.
        calls: How often the function was called.
    """

    def __init__(self, name: str, function: VectorFunction, init_params: Tree) -> None:
        self.name, self.function, self.calls = name, function, 0
        self.like = plain(function.space.vector(init_params, "`init_params`"), name)

    def out(self, tensor: Tensor) -> Any:
        """Hand a tensor to SciPy."""
        values = plain(tensor, self.name)
        with outside_transforms():
            return values.double().cpu().numpy()

    def into(self, x: Any) -> Tensor:
        """Take a vector from SciPy."""
        return torch.as_tensor(x).to(self.like)

    def values(self, x: Any) -> Any:
        """Return the values."""
        self.calls += 1
        return self.out(self.function(self.into(x)))

    def linearized(self, x: Any) -> tuple[Any, Any]:
        """Return the values and their Jacobian."""
        self.calls += 1
        value, jacobian = self.function.linearized(self.into(x))
        return self.out(value), self.out(jacobian)

    def value(self, x: Any) -> float:
        """Return the one value."""
        return self.values(x)[0]

    def value_and_gradient(self, x: Any) -> tuple[float, Any]:
        """Return the one value and its gradient."""
        value, jacobian = self.linearized(x)
        return value[0], jacobian[0]

    def hessian_product(self, x: Any, v: Any) -> Any:
        """Return the product of the Hessian of the one value with a vector."""
        self.calls += 1
        return self.out(vjp(self._gradient, self.into(x))[1](self.into(v))[0])

    def hessian(self, x: Any) -> Any:
        """Return the Hessian of the one value."""
        self.calls += 1
        return self.out(torch.func.jacrev(self._gradient)(self.into(x)))

    def _gradient(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: self.function(x)[0])(x)


@dataclass(frozen=True)
class ScipySolver(Solver):
    """The base of SciPy's solvers: `run` calls SciPy once, for one example.

    Attributes:
        options: Passed on to SciPy, beside `maxiter` and `tol`.
    """

    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_implicit(self)

    @abstractmethod
    def solved(
        self, optimize: Any, init_params: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Bridge]:
        """Call SciPy; return its result, and what it called."""

    def iterate(self, init_params: Tree, *args: Any, **kwargs: Any) -> OptStep:
        """Let SciPy solve."""
        result, bridge = self.solved(scipy_optimize(), init_params, args, kwargs)
        params = bridge.function.space.tree(bridge.into(result.x))
        error = plain(self.l2_optimality_error(params, *args, **kwargs), bridge.name)
        count = int(result.get("nit", bridge.calls))
        if result.success or bool(error <= self.tol):
            status = SolverStatus.CONVERGED
        elif not error.isfinite():
            status = SolverStatus.NONFINITE
        else:
            status = SolverStatus.MAXITER if count >= self.maxiter else SolverStatus.STALLED
        numbers = torch.tensor([count, status.value, bridge.calls], device=error.device)
        state = ScipyState(numbers[0], error, numbers[1], numbers[2])
        report(type(self).__name__, state, self.tol, self.maxiter, self.on_failure)
        return OptStep(params, state)

    def init_state(self, init_params: Tree, *args: Any, **kwargs: Any) -> Any:
        """Refuse: SciPy keeps its state to itself."""
        raise NotImplementedError(f"`{type(self).__name__}` iterates within SciPy: call `run`.")

    def update(self, params: Tree, state: Any, *args: Any, **kwargs: Any) -> OptStep:
        """Refuse: SciPy keeps its state to itself."""
        raise NotImplementedError(f"`{type(self).__name__}` iterates within SciPy: call `run`.")

    def bridge(
        self, fun: Callable[..., Tree], init_params: Tree, args: tuple[Any, ...], kwargs: Any
    ) -> Bridge:
        """Return `fun` as SciPy calls it."""
        space = Coordinates.of(init_params, "`init_params`")
        return Bridge(type(self).__name__, VectorFunction(fun, space, args, kwargs), init_params)


def scipy_optimize() -> Any:
    """Import SciPy, which is asked for here alone."""
    try:
        return importlib.import_module("scipy.optimize")
    except ImportError as error:
        raise ImportError(
            "SciPy is not installed: `python -m pip install 'diffopt-implicit[scipy]'`."
        ) from error
