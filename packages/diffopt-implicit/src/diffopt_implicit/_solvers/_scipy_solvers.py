"""SciPy's solvers, with the derivatives of what they find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytree_core import tree_broadcast_prefix, tree_leaves, tree_map
from pytree_core.integrations.torch import tree_sub
from torch import Tensor

from diffopt_implicit import projections
from diffopt_implicit._linear_system import Tree, check_positive
from diffopt_implicit._solvers._scipy import Bridge, ScipySolver

WITHOUT_GRADIENT = {"nelder-mead", "powell", "cobyla", "cobyqa"}
WITH_HESSIAN = {"dogleg", "trust-exact"}
WITH_HESSIAN_PRODUCT = {"newton-cg", "trust-ncg", "trust-krylov", "trust-constr"}
ROOT_WITH_JACOBIAN = {"hybr", "lm"}
COUNTING_CALLS = {"hybr", "df-sane"}  # and not iterations, of which each takes one or more

# Of a squared residual, in units of the squared scale, as SciPy defines them.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z,
    "soft_l1": lambda z: 2 * ((1 + z).sqrt() - 1),
    "huber": lambda z: torch.where(z <= 1, z, 2 * z.clamp(min=1).sqrt() - 1),
    "cauchy": torch.log1p,
    "arctan": torch.arctan,
}


def minimized(
    optimize: Any, solver: ScipyMinimize | ScipyBoundedMinimize, bridge: Bridge, **extra: Any
) -> Any:
    """Call `scipy.optimize.minimize` with the derivatives that its method uses."""
    method = solver.method.lower()
    plain = method in WITHOUT_GRADIENT
    if method in WITH_HESSIAN:
        extra["hess"] = bridge.hessian
    if method in WITH_HESSIAN_PRODUCT:
        extra["hessp"] = bridge.hessian_product
    return optimize.minimize(
        bridge.value if plain else bridge.value_and_gradient,
        bridge.out(bridge.like),
        jac=None if plain else True,
        method=solver.method,
        tol=solver.tol,
        options={"maxiter": solver.maxiter, **solver.options},
        **extra,
    )


@dataclass(frozen=True)
class ScipyMinimize(ScipySolver):
    """Minimize a function by `scipy.optimize.minimize`.

    Needs SciPy (``pip install 'diffopt-implicit[scipy]'``). Works on one example at a time, in
    float64 on the CPU; the function is called in the dtypes and on the device of the parameters.
    SciPy's line searches expect the accuracy of float64: give parameters in it.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` a scalar.
        method: One of SciPy's methods without constraints; derivatives that it uses are given.
        options: Passed on to SciPy, beside `maxiter`.
        tol: Passed on to SciPy.

    Example:
        >>> import torch
        >>> a = torch.tensor([2.0, 4.0], dtype=torch.float64, requires_grad=True)
        >>> solver = ScipyMinimize(lambda x, a: (x.exp() - a * x).sum(), tol=1e-6)
        >>> x = solver.run(torch.zeros_like(a), a).params  # log(a)
        >>> torch.autograd.grad(x.sum(), a)
        (tensor([0.5000, 0.2500], dtype=torch.float64),)
    """

    fun: Callable[..., Tensor]
    method: str = "BFGS"

    def solved(
        self, optimize: Any, init_params: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Bridge]:
        """Call SciPy."""
        bridge = self.bridge(self.fun, init_params, args, kwargs)
        return minimized(optimize, self, bridge), bridge

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the gradient."""
        return torch.func.grad(self.fun)(params, *args, **kwargs)


@dataclass(frozen=True)
class ScipyBoundedMinimize(ScipySolver):
    """Minimize a function within bounds by `scipy.optimize.minimize`.

    As `ScipyMinimize`, and called as ``run(init_params, bounds, *args)``, with ``bounds = (lower,
    upper)``, each a number or a tree that is a prefix of the parameters, perhaps infinite. The
    solution is differentiable in the bounds too: where one is active, it moves with it.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` a scalar.
        method: One of SciPy's methods that take bounds.
        options: Passed on to SciPy, beside `maxiter`.
        tol: Passed on to SciPy.

    Example:
        >>> import torch
        >>> top = torch.tensor(1.5, requires_grad=True)
        >>> solver = ScipyBoundedMinimize(lambda x, a: (x - a).square().sum())
        >>> x = solver.run(torch.zeros(2), (0.0, top), torch.tensor([1.0, 2.0])).params
        >>> x, torch.autograd.grad(x.sum(), top)
        (tensor([1.0000, 1.5000], grad_fn=...), (tensor(1.),))
    """

    fun: Callable[..., Tensor]
    method: str = "L-BFGS-B"

    def solved(
        self, optimize: Any, init_params: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Bridge]:
        """Call SciPy."""
        bounds, *rest = args
        bridge = self.bridge(self.fun, init_params, tuple(rest), kwargs)
        lower, upper = (bound_vector(bridge, bound, init_params) for bound in bounds)
        limits = optimize.Bounds(lower, upper)
        return minimized(optimize, self, bridge, bounds=limits), bridge

    def optimality_fun(self, params: Tree, bounds: Any, *args: Any, **kwargs: Any) -> Tree:
        """Return the step of a projected gradient."""
        slope = torch.func.grad(self.fun)(params, *args, **kwargs)
        return tree_sub(params, projections.box(tree_sub(params, slope), *bounds))


def bound_vector(bridge: Bridge, bound: Tree, params: Tree) -> Any:
    """Return the bounds of all elements."""

    def expanded(leaf: Tensor, number: Any) -> Tensor:
        return torch.as_tensor(number, dtype=leaf.dtype, device=leaf.device).expand_as(leaf)

    tree = tree_map(expanded, params, tree_broadcast_prefix(bound, params))
    return bridge.out(bridge.function.space.vector(tree, "A bound"))


@dataclass(frozen=True)
class ScipyRootFinding(ScipySolver):
    """Find a root by `scipy.optimize.root`.

    As `ScipyMinimize`, for as many equations as unknowns.

    Attributes:
        fun: ``(params, *args, **kwargs) ->`` a tree like the parameters, zero at the root.
        method: One of SciPy's; those that use a Jacobian are given it.
        options: Passed on to SciPy, beside `maxiter`.
        tol: Passed on to SciPy.

    Example:
        >>> import torch
        >>> a = torch.tensor(2.0, requires_grad=True)
        >>> x = ScipyRootFinding(lambda x, a: x**2 - a).run(torch.tensor(1.0), a).params
        >>> x, torch.autograd.grad(x, a)
        (tensor(1.4142, grad_fn=...), (tensor(0.3536),))
    """

    fun: Callable[..., Tree]
    method: str = "hybr"

    def solved(
        self, optimize: Any, init_params: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Bridge]:
        """Call SciPy."""
        bridge = self.bridge(self.fun, init_params, args, kwargs)
        exact = self.method.lower() in ROOT_WITH_JACOBIAN
        most = "maxfev" if self.method.lower() in COUNTING_CALLS else "maxiter"
        result = optimize.root(
            bridge.linearized if exact else bridge.values,
            bridge.out(bridge.like),
            jac=True if exact else None,
            method=self.method,
            tol=self.tol,
            options={most: self.maxiter, **self.options},
        )
        return result, bridge

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the value of the function."""
        return self.fun(params, *args, **kwargs)


@dataclass(frozen=True)
class ScipyLeastSquares(ScipySolver):
    """Minimize ``scale^2 / 2 sum_i loss(r_i^2 / scale^2)`` by `scipy.optimize.least_squares`.

    As `ScipyMinimize`, for any tree of residuals ``r``.

    Attributes:
        residual_fun: ``(params, *args, **kwargs) ->`` the residual.
        method: ``"trf"``, ``"dogbox"``, or ``"lm"``, the last for the linear loss alone.
        loss: ``"linear"``, ``"soft_l1"``, ``"huber"``, ``"cauchy"`` or ``"arctan"``.
        scale: From what size on a residual counts less than its square, positive.
        options: Passed on to SciPy.
        tol: Passed on to SciPy as ``ftol``, ``xtol`` and ``gtol``.

    Example:
        >>> import torch
        >>> y = torch.tensor([1.0, 2.0, 30.0], requires_grad=True)
        >>> solver = ScipyLeastSquares(lambda x, y: x - y, loss="huber", tol=1e-8)
        >>> x = solver.run(torch.tensor(0.0), y).params
        >>> x, torch.autograd.grad(x, y)  # an outlier does not move it
        (tensor(2., grad_fn=...), (tensor([0.5000, 0.5000, 0.0000]),))
    """

    residual_fun: Callable[..., Tree]
    method: str = "trf"
    loss: str = "linear"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("scale", self.scale)
        if self.loss not in LOSSES:
            raise ValueError(f"`loss` must be one of {sorted(LOSSES)}, got {self.loss!r}.")

    def solved(
        self, optimize: Any, init_params: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Bridge]:
        """Call SciPy."""
        bridge = self.bridge(self.residual_fun, init_params, args, kwargs)
        result = optimize.least_squares(
            bridge.values,
            bridge.out(bridge.like),
            jac=lambda x: bridge.linearized(x)[1],
            method=self.method,
            loss=self.loss,
            f_scale=self.scale,
            ftol=self.tol,
            xtol=self.tol,
            gtol=self.tol,
            max_nfev=self.maxiter,
            **self.options,
        )
        return result, bridge

    def optimality_fun(self, params: Tree, *args: Any, **kwargs: Any) -> Tree:
        """Return the gradient of what is minimized."""

        def cost(params: Tree) -> Tensor:
            leaves = tree_leaves(self.residual_fun(params, *args, **kwargs))
            z = torch.cat([(leaf / self.scale).reshape(-1) ** 2 for leaf in leaves])
            return 0.5 * self.scale**2 * LOSSES[self.loss](z).sum()

        return torch.func.grad(cost)(params)
