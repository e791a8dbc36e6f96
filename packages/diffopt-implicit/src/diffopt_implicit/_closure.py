"""Find and name tensors that a function uses without being passed them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pytree_core import tree_leaves
from torch import Tensor, nn

from diffopt_implicit._torch import is_tracked

Tree = Any

MAX_DEPTH = 6  # of functions within functions and containers within containers


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
        raise ValueError(closure_message("The solver", tracked_names(solver)))


def closure_message(name: str, tensors: Sequence[str]) -> str:
    """Say which tensors reach a function by closure, and what to do."""
    return (
        f"{name} uses tensors that require grad but are not arguments, so their gradient would "
        f"be lost: {', '.join(tensors) or 'out of reach of their names'}. Pass them through the "
        "solver's arguments (a module by `torch.func.functional_call` on its parameters), or "
        "detach them if they are constants."
    )


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


def tracked_names(func: Callable[..., Any]) -> list[str]:
    """Name the tensors within reach of `func` that derivatives flow into."""
    found = {}
    for name, tensor in reachable("", func, set(), 0):
        if is_tracked(tensor):
            found.setdefault(id(tensor), f"`{name}` of shape {tuple(tensor.shape)}")
    return list(found.values())


def tracked_tensors(func: Callable[..., Any]) -> list[Tensor]:
    """List the tensors within reach of `func` that derivatives flow into."""
    return [tensor for _, tensor in reachable("", func, set(), 0) if is_tracked(tensor)]


def reachable(name: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in `value` and their names, each object looked at once."""
    if isinstance(value, Tensor):
        yield name, value
        return
    if id(value) in seen or depth > MAX_DEPTH:
        return
    seen.add(id(value))
    for part, inner in parts(name, value):
        yield from reachable(part, inner, seen, depth + 1)


def parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what `value` is made of, where tensors may hide."""
    dot = f"{name}." if name else ""
    if isinstance(value, nn.Module):
        yield from ((dot + key, p) for key, p in value.named_parameters())
        yield from ((dot + key, b) for key, b in value.named_buffers())
    elif isinstance(value, types.FunctionType):
        yield from function_parts(value)
    elif isinstance(value, types.MethodType):
        yield name or type(value.__self__).__name__, value.__self__
        yield name, value.__func__
    elif isinstance(value, functools.partial):
        yield name, value.func
        yield from ((f"{dot}args[{i}]", inner) for i, inner in enumerate(value.args))
        yield from ((dot + key, inner) for key, inner in value.keywords.items())
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", inner) for key, inner in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"{name}[{i}]", inner) for i, inner in enumerate(value))
    elif hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType)):
        yield from ((dot + key, inner) for key, inner in vars(value).items())


def function_parts(func: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function closes over, its defaults, and the globals that it names."""
    cells = zip(func.__code__.co_freevars, func.__closure__ or (), strict=True)
    yield from ((key, cell.cell_contents) for key, cell in cells if is_assigned(cell))
    yield from ((f"default {i}", default) for i, default in enumerate(func.__defaults__ or ()))
    yield from (func.__kwdefaults__ or {}).items()
    for key in code_names(func.__code__):
        if key in func.__globals__:
            yield key, func.__globals__[key]


def code_names(code: types.CodeType) -> Iterator[str]:
    """Yield the global names in `code` and in the functions defined within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_names(constant)


def is_assigned(cell: types.CellType) -> bool:
    """Tell whether the variable that a cell stands for has a value yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
