"""`ImplicitModule`: a module some of whose parameters solve a problem posed by the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffopt_implicit._arguments import without_graph
from diffopt_implicit._condition import LinearSolver, attach_root
from diffopt_implicit._linear_info import OnFailure
from diffopt_implicit._normal_cg import solve_normal_cg
from diffopt_implicit._root_check import RootCheck
from diffopt_implicit._torch import is_transforming, outside_graphs

Named = dict[str, Tensor]


class ImplicitModule(nn.Module):
    """A module whose inner parameters are the solution of a problem, differentiable in the rest.

    A subclass names its parameters, states the problem as `objective` or `optimality`, and
    solves it in `solve`, in place and by whatever means. `solution` then gives the inner
    parameters as functions of the meta-parameters and of its arguments, by the implicit
    function theorem. All of them are ordinary parameters: in `state_dict()`, moved by `.to()`,
    in nested modules and subclasses of subclasses.

    Class attributes, to be set by a subclass or on an instance:

    - `inner`: names of the parameters, or of the submodules holding them, that `solve` finds.
    - `meta`: names of the parameters or submodules that they depend on. Every parameter that
      requires grad is in one of the two.
    - `linear_solve`: the linear solver of the derivative, as `solve` of `custom_root`.
    - `root_tol` and `on_inexact_root`: as of `custom_root`.

    Dropout in training mode and batch norm that updates its statistics are refused in the
    problem, whose derivative they would leave undefined: call `eval()` on such parts.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Ridge(ImplicitModule):
        ...     inner, meta = ("weight",), ("log_penalty",)
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.zeros(2))
        ...         self.log_penalty = nn.Parameter(torch.zeros(()))
        ...     def objective(self, x, y):
        ...         penalty = self.log_penalty.exp() * self.weight.square().sum()
        ...         return (x @ self.weight - y).square().sum() + penalty
        ...     def solve(self, x, y):
        ...         a = x.T @ x + self.log_penalty.exp() * torch.eye(2)
        ...         with torch.no_grad():
        ...             self.weight.copy_(torch.linalg.solve(a, x.T @ y))
        >>> ridge = Ridge()
        >>> x, y = torch.eye(2), torch.tensor([2.0, 4.0])
        >>> weight = ridge.solution(x, y)["weight"]  # y / (1 + penalty)
        >>> weight.sum().backward()
        >>> ridge.log_penalty.grad  # -sum(y) / 4
        tensor(-1.5000)

    Source:
        Rajeswaran, Finn, Kakade & Levine, *Meta-learning with implicit gradients*, NeurIPS
        2019, section 3; Blondel et al., *Efficient and modular implicit differentiation*,
        NeurIPS 2022, section 2.1.
    """

    inner: ClassVar[tuple[str, ...]] = ()
    meta: ClassVar[tuple[str, ...]] = ()
    linear_solve: ClassVar[LinearSolver] = solve_normal_cg
    root_tol: ClassVar[float] = 0.1
    on_inexact_root: ClassVar[OnFailure] = "warn"

    def objective(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the scalar that the inner parameters minimize; override it or `optimality`."""
        raise NotImplementedError

    def optimality(self, *args: Any, **kwargs: Any) -> Named:
        """Return what vanishes at the solution: a tensor for each inner parameter, by name."""
        raise NotImplementedError

    def solve(self, *args: Any, **kwargs: Any) -> None:
        """Set the inner parameters to the solution, in place.

        Called by `solution` with gradients enabled, detached arguments and meta-parameters
        that do not require grad, so that ``backward()`` reaches the inner parameters alone.
        """
        raise NotImplementedError

    @outside_graphs
    def solution(self, *args: Any, **kwargs: Any) -> Named:
        """Solve, and return the inner parameters by name, differentiable.

        Args:
            *args: Any trees, handed on to `solve` and to the problem.
            **kwargs: The same.

        Returns:
            For each inner parameter a tensor with its value, differentiable in the
            meta-parameters and in the floating-point tensors among the arguments, to any order;
            to be used as ``torch.func.functional_call(module, solution, ...)``. The module's
            own inner parameters hold the same values, and are left alone when `solve` fails.

        Raises:
            NotImplementedError: If there is no problem, or no solver; and under the transforms
                of `torch.func`, which cannot follow what is set in place.
            ValueError: If the parameters are not declared as they must be.
            LinearSolveError: When a derivative is taken and `linear_solve` fails.
        """
        if is_transforming():
            raise NotImplementedError(
                f"`{type(self).__name__}.solution` sets parameters in place, which `torch.func` "
                "cannot transform: use `torch.autograd.grad` or `backward()`, or decorate a solver "
                "by `custom_root`."
            )
        inner, meta = dict(self.named_inner_parameters()), dict(self.named_meta_parameters())
        self._check_declared(inner, meta)
        condition = self._condition()
        check = RootCheck(self.root_tol, self.on_inexact_root)
        with only_inner(list(inner.values()), list(meta.values())), torch.enable_grad():
            self.solve(
                *map(without_graph, args),
                **{key: without_graph(value) for key, value in kwargs.items()},
            )
        root = {name: parameter.detach() for name, parameter in inner.items()}
        name = "The module's `optimality`" if self._states_optimality() else "`objective`"
        # A plain function there is a solver, and no method of this module.
        solve = inspect.getattr_static(self, "linear_solve")
        return attach_root(condition, root, (meta, args, kwargs), {}, solve, check, name)

    def inner_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that `solve` finds."""
        return (parameter for _, parameter in self.named_inner_parameters())

    def meta_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the solution depends on."""
        return (parameter for _, parameter in self.named_meta_parameters())

    def named_inner_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that `solve` finds, and their names."""
        return (item for item in self.named_parameters() if is_within(item[0], self.inner))

    def named_meta_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that the solution depends on, and their names."""
        return (item for item in self.named_parameters() if is_within(item[0], self.meta))

    def _check_declared(self, inner: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        names = [name for name, p in self.named_parameters() if p.requires_grad]
        both = sorted(inner.keys() & meta.keys())
        neither = [name for name in names if name not in inner and name not in meta]
        if both or neither or not inner:
            wrong = (
                f"`{both[0]}` is in both"
                if both
                else f"`{neither[0]}` is in neither"
                if neither
                else "there is no inner parameter"
            )
            raise ValueError(
                f"Each parameter of `{type(self).__name__}` that requires grad must be declared in "
                f"`inner` or in `meta`, and {wrong}: `inner` is {self.inner}, `meta` {self.meta}."
            )

    def _states_optimality(self) -> bool:
        return type(self).optimality is not ImplicitModule.optimality

    def _condition(self) -> Callable[..., Named]:
        """Return the optimality condition ``(inner, meta, args, kwargs) ->`` like inner."""
        name = "optimality" if self._states_optimality() else "objective"
        if type(self).objective is ImplicitModule.objective and name == "objective":
            raise NotImplementedError(
                f"`{type(self).__name__}` states no problem: override `objective` or `optimality`."
            )
        method = Method(self, name)

        def stated(inner: Named, meta: Named, args: Any, kwargs: Any) -> Any:
            parameters = {f"module.{key}": value for key, value in {**inner, **meta}.items()}
            return functional_call(method, parameters, args, kwargs)

        return stated if name == "optimality" else torch.func.grad(stated)


class Method(nn.Module):
    """A method of a module as a module, for `torch.func.functional_call`."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        return getattr(self.module, self.name)(*args, **kwargs)


@contextmanager
def only_inner(inner: list[nn.Parameter], meta: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients into the inner parameters alone; leave no trace but their new values."""
    before = [parameter.detach().clone() for parameter in inner]
    slopes = [parameter.grad for parameter in inner]
    wanted = [parameter for parameter in meta if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        for parameter in inner:
            parameter.grad = None
        yield
    except BaseException:
        with torch.no_grad():
            for parameter, value in zip(inner, before, strict=True):
                parameter.copy_(value)
        raise
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for parameter, slope in zip(inner, slopes, strict=True):
            parameter.grad = slope


def is_within(name: str, declared: tuple[str, ...]) -> bool:
    """Tell whether a parameter is one of those declared, or in a submodule that is."""
    return any(name == part or name.startswith(f"{part}.") for part in declared)
