"""`custom_root`: the derivative of a root, whatever found it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytree_core import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch import Tensor

from diffopt_implicit._closure import tracked_names, tracked_tensors
from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._equation import LinearMap, Solve, attach, detached
from diffopt_implicit._linear_system import MatVec, Tree
from diffopt_implicit._normal_cg import solve_normal_cg
from diffopt_implicit._torch import Tensors, is_tracked, outside_graphs, vjp

LinearSolver = Callable[[MatVec, Tree], Tree]


def custom_root(
    optimality_fun: Callable[..., Tree],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    solve: LinearSolver = solve_normal_cg,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a root finder the derivatives of its root, whatever its iterations were.

    Decorates ``solver(init, *args, **kwargs) -> x``, for an ``x`` where
    ``optimality_fun(x, *args, **kwargs)`` vanishes. By the implicit function theorem, with
    ``A = d optimality / dx`` and ``B = d optimality / d args`` at the root::

        dx = -A^{-1} B dargs            (forward mode)
        args_bar = -B^T u,  A^T u = v   (reverse mode, for a cotangent v of x)

    The solver is called once, on detached arguments and a detached copy of `init`, with
    gradients enabled: it may use autograd inside, nothing of it is kept, and memory does not
    grow with its iterations. Both modes can be differentiated again, to any order, by
    `torch.autograd` and by the transforms of `torch.func`; under `torch.func.vmap` the
    solver itself must be free of branches on values.

    Args:
        optimality_fun: ``(x, *args, **kwargs) ->`` a tree of ``x``'s structure and shapes,
            zero at the root, of torch operations. Called with the very arguments of the
            solver: positional ones by position, keyword arguments by name. It must be twice
            differentiable where second derivatives are asked for.
        argnums: Which positional arguments of the solver to differentiate; `init` is number
            0 and is refused, as a root does not depend on where its search began. An
            argument passed by name has the number of its position in the solver's signature.
            Default: all after `init`, and all keyword arguments.
        has_aux: Whether the solver returns ``(x, aux)``; `aux` is handed on untouched,
            computed from detached arguments and so without their gradient.
        solve: The linear solver, called as ``solve(matvec, b)`` on trees like ``x``. The
            default serves any nonsingular ``A``; `solve_cg` is faster if ``A`` is symmetric
            positive definite, like the Hessian of a strictly convex loss. Set options with
            ``functools.partial(solve_cg, maxiter=10, on_failure="warn")``.

    Returns:
        A decorator. The decorated solver takes any trees; floating-point tensors in them
        are differentiated, integer tensors and other leaves pass through. Its result has no
        path back to `init`: `torch.func.grad` gives the exact zero there, and
        `torch.autograd.grad` reports it as unused.

    Raises:
        LinearSolveError: When a derivative is taken and `solve` fails.
        TypeError: If the root holds anything but real floating-point tensors.
        ValueError: If `argnums` names what is not there, if `optimality_fun` returns another
            structure or other shapes than the root's, or if a tensor into which gradients
            flow reaches it, or the root, by closure: its gradient would be lost.

    Example:
        >>> import torch
        >>> def condition(x, a):
        ...     return x**3 - a
        >>> @custom_root(condition)
        ... def cube_root(init, a):
        ...     x = init
        ...     for _ in range(50):
        ...         x = x - (x**3 - a) / (3 * x**2)
        ...     return x
        >>> a = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
        >>> root = cube_root(torch.ones_like(a), a)
        >>> (slope,) = torch.autograd.grad(root, a, create_graph=True)
        >>> (curvature,) = torch.autograd.grad(slope, a)
        >>> print(f"{root.item():.4f} {slope.item():.4f} {curvature.item():.4f}")
        2.0000 0.0833 -0.0069

    Source:
        Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-López, Pedregosa & Vert,
        *Efficient and modular implicit differentiation*, NeurIPS 2022, section 2.1.
    """
    chosen = normalized(argnums)

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        names = positional_names(solver)

        @outside_graphs
        @functools.wraps(solver)
        def solve_and_attach(*args: Any, **kwargs: Any) -> Any:
            init, args, kwargs = split_init(names, args, kwargs)
            args, kwargs = stop_unchosen(chosen, names, args, kwargs)
            with torch.enable_grad():
                found = solver(
                    without_graph(init, copy=True),
                    *map(without_graph, args),
                    **{key: without_graph(value) for key, value in kwargs.items()},
                )
            root, aux = unpack(found, has_aux)
            check_solver_closure(solver, root)
            problem = RootProblem.of(optimality_fun, root, args, kwargs)
            problem.check()
            root = problem.attach(solve)
            return (root, aux) if has_aux else root

        return solve_and_attach

    return decorate


@dataclass(frozen=True)
class RootProblem:
    """A root, its condition, and the arguments of it, taken apart into tensors.

    Attributes:
        optimality_fun: The condition, on trees.
        space: What the root looks like.
        root: The leaves of the root, detached.
        spec: The structure of ``(args, kwargs)``.
        leaves: The leaves of ``(args, kwargs)``, None in place of the tensors.
        places: The positions of the tensors among the leaves.
        tensors: These tensors.
    """

    optimality_fun: Callable[..., Tree]
    space: Coordinates
    root: Tensors
    spec: Any
    leaves: tuple[Any, ...]
    places: tuple[int, ...]
    tensors: Tensors

    @classmethod
    def of(
        cls,
        optimality_fun: Callable[..., Tree],
        root: Tree,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> RootProblem:
        """Take root and arguments apart."""
        space = Coordinates.of(root, "the root")
        leaves, spec = tree_flatten((tuple(args), dict(kwargs)))
        places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        tensors = tuple(leaves[i] for i in places)
        static = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(
            optimality_fun, space, detached(tuple(tree_leaves(root))), spec, static, places, tensors
        )

    def condition(self, root: Tensors, tensors: Tensors) -> Tensors:
        """Evaluate the condition on flat tuples."""
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(self.spec, leaves)
        residual = self.optimality_fun(tree_unflatten(self.space.spec, root), *args, **kwargs)
        values, spec = tree_flatten(residual)
        shapes = tuple(getattr(value, "shape", None) for value in values)
        if spec != self.space.spec or shapes != self.space.shapes:
            raise ValueError(
                "`optimality_fun` must return a tree of the root's structure and shapes, "
                f"{self.space.spec}, {[tuple(shape) for shape in self.space.shapes]}; got "
                f"{spec}, {[None if shape is None else tuple(shape) for shape in shapes]}."
            )
        return tuple(
            value.to(dtype) for value, dtype in zip(values, self.space.dtypes, strict=True)
        )

    def check(self) -> None:
        """Evaluate the condition once: its shape, and gradients that it would lose."""
        # The arguments are detached, so what the residual still depends on came by closure.
        # `vjp` makes the root differentiable at a level of its own, which is gone from the
        # result: a condition may so take a gradient in the root by `torch.autograd.grad`.
        values = detached(self.tensors)
        residual, _ = vjp(lambda *x: self.condition(x, values), *self.root)
        if any(is_tracked(value) for value in residual):
            raise ValueError(
                closure_message("`optimality_fun`", tracked_names(self.optimality_fun))
            )

    def attach(self, solve: LinearSolver) -> Tree:
        """Return the root, differentiable in the arguments."""
        attached = attach(self.condition, flat(solve, self.space.spec), self.root, self.tensors)
        return tree_unflatten(self.space.spec, attached)


def flat(solve: LinearSolver, spec: Any) -> Solve:
    """Turn a linear solver on trees of one structure into one on tuples of their leaves."""

    def solve_flat(matvec: LinearMap, b: Tensors) -> Tensors:
        def on_trees(x: Tree) -> Tree:
            return tree_unflatten(spec, matvec(tuple(tree_leaves(x))))

        return tuple(tree_leaves(solve(on_trees, tree_unflatten(spec, b))))

    return solve_flat


def closure_message(name: str, tensors: Sequence[str]) -> str:
    """Say which tensors reach a function by closure, and what to do."""
    return (
        f"{name} uses tensors that require grad but are not arguments, so their gradient would "
        f"be lost: {', '.join(tensors) or 'out of reach of their names'}. Pass them through the "
        "solver's arguments (a module by `torch.func.functional_call` on its parameters), or "
        "detach them if they are constants."
    )


def check_solver_closure(solver: Callable[..., Any], root: Tree) -> None:
    """Refuse a root that autograd traced to a tensor the solver closes over."""
    # A leaf is welcome: a solver may train a module's parameters in place and return them. So
    # is a graph that starts at the solver's own iterate; hence only what is found by name counts.
    nodes = [
        leaf.grad_fn for leaf in tree_leaves(root) if isinstance(leaf, Tensor) and leaf.grad_fn
    ]
    if not nodes:
        return
    sources = {id(tensor) for tensor in graph_leaves(nodes)}
    closed = [tensor for tensor in tracked_tensors(solver) if id(tensor) in sources]
    if closed:
        names = tracked_names(solver)
        raise ValueError(closure_message("The solver", names))


def graph_leaves(nodes: Sequence[Any]) -> list[Tensor]:
    """List the leaf tensors that the graph of `nodes` starts from."""
    found, seen, todo = [], set(), list(nodes)
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo.extend(next_node for next_node, _ in node.next_functions)
    return found


def without_graph(tree: Tree, copy: bool = False) -> Tree:
    """Detach the tensors of a tree, and copy them if asked to."""

    def detach(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().clone() if copy else leaf.detach()

    return tree_map(detach, tree)


def unpack(found: Any, has_aux: bool) -> tuple[Tree, Any]:
    """Split what a solver returned into root and aux."""
    if not has_aux:
        return found, None
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(
            f"With `has_aux` the solver must return `(root, aux)`, got {type(found).__name__}."
        )
    return found


def normalized(argnums: int | Sequence[int] | None) -> frozenset[int] | None:
    """Check `argnums` and return it as a set; None stands for all."""
    if argnums is None:
        return None
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not numbers:
        raise ValueError(
            "`argnums` is empty, so nothing would be differentiated; leave it out for all."
        )
    for number in numbers:
        if number == 0:
            raise ValueError(
                "`argnums` counts the solver's positional arguments, and 0 is `init`, on which a "
                "root does not depend. The first argument after it is 1."
            )
        if number < 0:
            raise ValueError(f"`argnums` must be positive, got {number}.")
    return frozenset(numbers)


def positional_names(solver: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the positional parameters of `solver`, as far as they have any."""
    try:
        parameters = inspect.signature(solver).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return ()
    return tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )


def split_init(
    names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tree, tuple[Any, ...], dict[str, Any]]:
    """Take the first argument of the solver out of a call, wherever it stands."""
    if args:
        return args[0], args[1:], kwargs
    if names and names[0] in kwargs:
        rest = dict(kwargs)
        return rest.pop(names[0]), (), rest
    raise TypeError("The solver's first argument, where its search begins, is missing.")


def stop_unchosen(
    chosen: frozenset[int] | None,
    names: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Detach the arguments that `argnums` leaves out."""
    if chosen is None:
        return args, kwargs
    numbers = {name: i for i, name in enumerate(names)}
    present = {*range(1, len(args) + 1), *(numbers[key] for key in kwargs if key in numbers)}
    missing = sorted(chosen - present)
    if missing:
        raise ValueError(
            f"`argnums` names argument {missing[0]}, but this call has only the arguments "
            f"{sorted(present)} after `init`, which is 0."
        )
    kept_args = tuple(
        value if i in chosen else without_graph(value) for i, value in enumerate(args, start=1)
    )
    kept_kwargs = {
        key: value if numbers.get(key) in chosen else without_graph(value)
        for key, value in kwargs.items()
    }
    return kept_args, kept_kwargs
