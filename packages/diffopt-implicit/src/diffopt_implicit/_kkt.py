"""The optimality condition of a constrained minimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pytree_core import tree_flatten, tree_leaves, tree_map, tree_structure, tree_unflatten
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_system import Tree
from diffopt_implicit._torch import Tensors, outside_graphs


class KKTSolution(NamedTuple):
    """A constrained minimum and its multipliers, any trees.

    Attributes:
        primal: The minimum.
        dual_eq: A multiplier for each equality, like what the equalities return; None
            without equalities.
        dual_ineq: A multiplier, at least 0, for each inequality, like what the inequalities
            return; None without inequalities.

    Example:
        >>> KKTSolution(primal=1.0)
        KKTSolution(primal=1.0, dual_eq=None, dual_ineq=None)
    """

    primal: Tree
    dual_eq: Tree = None
    dual_ineq: Tree = None


def kkt_optimality(
    objective: Callable[..., Tensor],
    equality: Callable[..., Tree] | None = None,
    inequality: Callable[..., Tree] | None = None,
) -> Callable[..., KKTSolution]:
    """Return the condition of Karush, Kuhn and Tucker for a constrained minimum.

    For the minimum over ``x`` of ``f(x)`` with ``g(x) = 0`` and ``h(x) <= 0``, all of further
    arguments too, the condition at ``(x, nu, mu)`` is::

        grad_x (f + nu . g + mu . h),    g,    mu * h

    It is the `optimality_fun` of a solver decorated by `custom_root` that returns a
    `KKTSolution`. Its Jacobian is regular, and so the derivative defined, if the active
    constraints have independent gradients, none of them has a multiplier of 0, and the
    Lagrangian is convex along them; it is not symmetric positive definite, so take
    `solve_normal_cg`, `solve_gmres` or `solve_lu`. JAXopt's name for it is
    `make_kkt_optimality_fun`, whose functions take parameters of their own.

    Args:
        objective: ``f(x, *args, **kwargs) ->`` scalar.
        equality: ``g(x, *args, **kwargs) ->`` any tree of tensors, zero at the minimum.
        inequality: ``h(x, *args, **kwargs) ->`` any tree of tensors, at most 0.

    Returns:
        ``condition(solution, *args, **kwargs)``, from and to a `KKTSolution`.

    Raises:
        ValueError: When the condition is called, if a multiplier does not look like what its
            constraint returns.

    Example:
        >>> import torch
        >>> from diffopt_implicit import custom_root
        >>> condition = kkt_optimality(lambda x, b: (x**2).sum(), lambda x, b: x.sum() - b)
        >>> @custom_root(condition)
        ... def nearest(init, b):
        ...     return KKTSolution(torch.full((2,), b.item() / 2), -b)
        >>> b = torch.tensor(3.0, requires_grad=True)
        >>> torch.autograd.grad(nearest(None, b).primal[0], b)
        (tensor(0.5000),)

    Source:
        Boyd & Vandenberghe, *Convex Optimization*, 2004, section 5.5.3; differentiated by
        Amos & Kolter, *OptNet*, ICML 2017, section 3.1.
    """

    @outside_graphs
    def condition(solution: KKTSolution, /, *args: Any, **kwargs: Any) -> KKTSolution:
        primal, dual_eq, dual_ineq = solution
        leaves, spec = tree_flatten(primal)

        def lagrangian(*x: Tensor) -> tuple[Tensor, Tensors]:
            point = tree_unflatten(spec, x)
            g = None if equality is None else equality(point, *args, **kwargs)
            h = None if inequality is None else inequality(point, *args, **kwargs)
            value = objective(point, *args, **kwargs)
            value = value + pairing(dual_eq, g, "dual_eq", "equality")
            value = value + pairing(dual_ineq, h, "dual_ineq", "inequality")
            return value, tuple(tree_leaves((g, h)))

        every = tuple(range(len(leaves)))
        slopes, values = torch.func.grad(lagrangian, argnums=every, has_aux=True)(*leaves)
        # `pairing` has seen to it that the values look like the multipliers.
        g, h = tree_unflatten(tree_structure((dual_eq, dual_ineq)), values)
        slackness = tree_map(lambda mu, part: mu * part, dual_ineq, h)
        return KKTSolution(tree_unflatten(spec, slopes), g, slackness)

    return condition


def pairing(dual: Tree, values: Tree, dual_name: str, name: str) -> Tensor:
    """Return the sum of the values of a constraint, each by its multiplier."""
    space = Coordinates.of(values, f"what `{name}` returns")
    return torch.dot(space.vector(dual, f"`{dual_name}`"), space.vector(values, f"`{name}`"))
