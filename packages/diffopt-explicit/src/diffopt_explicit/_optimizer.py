"""Optimizers in place: transforms as instances of `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from pytree_core import tree_leaves
from torch import Tensor

from diffopt_explicit._apply import apply_updates
from diffopt_explicit._in_place import in_place
from diffopt_explicit._override import anatomy, hyperparameters, override
from diffopt_explicit._rows import Layout, Row, loaded, resumed, start
from diffopt_explicit._transform import Transform, check_transform


class Optimizer(torch.optim.Optimizer):
    """A transform as an optimizer in place, for training without meta-gradients.

    An instance of ``torch.optim.Optimizer`` in all respects: parameter groups, closures,
    hooks, `state_dict`, and the schedulers of ``torch.optim.lr_scheduler``. A group holds the
    transform's numbers by name (``lr``, ``momentum``, ...), and a step is taken with what the
    group holds then. Where `diffopt_kernels` has the transform's step, the parameters and the
    state are written over in one pass; otherwise the transform's updates are added to them.

    The state of ours that is also ``torch.optim``'s is under the same names, so that either
    loads a `state_dict` of the other.

    Args:
        params: Tensors, or groups of them, as for ``torch.optim``.
        tx: The transform. What it shares between parameters, such as a global norm, it shares
            within a group. In the groups are the numbers that have one value in it.

    Raises:
        TypeError: For `tx` without `init` and `update`, or parameters that are not real
            floating-point tensors.
        ValueError: For a hyperparameter out of its range, or one that requires grad.

    Example:
        >>> import torch
        >>> from diffopt_explicit import Optimizer, adam, chain, clip_by_global_norm
        >>> module = torch.nn.Linear(2, 1)
        >>> tx = chain(clip_by_global_norm(1.0), adam(lr=0.1))
        >>> optimizer = Optimizer(module.parameters(), tx)
        >>> scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        >>> module(torch.ones(4, 2)).square().mean().backward()
        >>> optimizer.step()
        >>> scheduler.step()
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """

    def __init__(self, params: Iterable[Any], tx: Transform) -> None:
        self._set_up(params, partial(override, check_transform(tx)), hyperparameters(tx))

    def _set_up(
        self,
        params: Iterable[Any],
        build: Callable[..., Transform],
        numbers: dict[str, Any],
        **implied: bool,
    ) -> None:
        self._build = build
        self._names = tuple(numbers)
        self._layouts: dict[int, tuple[Any, Layout]] = {}  # by group, with the anatomy of its tx
        super().__init__(params, {**numbers, **implied})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; see ``torch.optim.Optimizer.add_param_group``."""
        super().add_param_group(param_group)
        try:
            self._check(len(self.param_groups) - 1)
        except Exception:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradients anew.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Planned before any is written, so that an error leaves all groups as they were.
        for write in [self._plan(index) for index in range(len(self.param_groups))]:
            write()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the state of such an optimizer, or of its counterpart in ``torch.optim``.

        Raises:
            ValueError: For the state of another kind of optimizer, or of other parameters.
                Nothing is changed then.
        """
        rows: dict[Tensor, Row] = {}
        for index, saved in enumerate(state_dict["param_groups"][: len(self.param_groups)]):
            rows.update(self._loaded(index, saved, state_dict["state"]))
        super().load_state_dict(state_dict)
        # Once more, because torch casts state to the parameters' dtype.
        self.state.update(rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_build": self._build, "_names": self._names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._layouts = {}
        for group in self.param_groups:
            for name in self._names:
                group.setdefault(name, self.defaults[name])

    def transform(self, group: dict[str, Any]) -> Transform:
        """The transform with the hyperparameters of a group."""
        return self._build(**{name: group.get(name, self.defaults[name]) for name in self._names})

    def _check(self, index: int) -> None:
        """Refuse a group that no step could be taken for."""
        group = self.param_groups[index]
        for position, param in enumerate(group["params"]):
            if not param.is_floating_point():
                raise TypeError(
                    f"Parameter {position} of group {index} has dtype {param.dtype}, but only "
                    "real floating-point tensors can be moved by gradients."
                )
        for name in self._names:
            learned = (isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(group[name]))
            if any(learned):
                raise ValueError(
                    f"`{name}` of group {index} requires grad, which steps in place cannot give. "
                    "Use `MetaOptimizer`, `inner_loop` or `unroll` to learn it, or detach it."
                )
        self.transform(group)

    def _plan(self, index: int) -> Callable[[], None]:
        """What a step of a group will write."""
        group = self.param_groups[index]
        params = cast("list[Tensor]", group["params"])
        grads = [_gradient(param, f"{i} of group {index}") for i, param in enumerate(params)]
        if all(grad is None for grad in grads):
            return lambda: None
        tx = self.transform(group)
        form = self._ready(index, tx)
        rows = [self.state.get(param, {}) for param in params]
        state = form.state(rows, group["shared"], params)
        write = in_place(tx, grads, state, params)
        if write is None:
            updates, state = tx.update(grads, state, params)
            write = partial(_move, params, apply_updates(params, updates), state)
        return partial(self._write, group, form, write)

    def _write(self, group: dict[str, Any], form: Layout, write: Callable[[], Any]) -> None:
        rows, group["shared"] = form.rows(write(), group["params"])
        for param, row in zip(group["params"], rows, strict=True):
            if row:
                self.state[param].update(row)

    def _ready(self, index: int, tx: Transform) -> Layout:
        """Make the rows of a group complete, and return how they make up the state."""
        group = self.param_groups[index]
        kind, form = self._layouts.get(index, (None, None))
        if form is None or kind != anatomy(tx):
            form, fresh, shared = start(tx, group["params"])
            rows = [self.state.get(param, {}) for param in group["params"]]
            rows, shared = resumed(fresh, shared, rows)
            group["shared"] = {**shared, **group.get("shared", {})}
            self.state.update({p: row for p, row in zip(group["params"], rows, strict=True) if row})
            self._layouts[index] = anatomy(tx), form
        return form

    def _loaded(
        self, index: int, saved: dict[str, Any], state: dict[Any, Row]
    ) -> dict[Tensor, Row]:
        """The rows of a group that is to be loaded."""
        for flag in self.defaults.keys() - {*self._names}:
            if saved.get(flag, self.defaults[flag]) != self.defaults[flag]:
                raise ValueError(
                    f"The state was saved with `{flag}={saved[flag]}`, which "
                    f"{type(self).__name__} does not do. Load it into an optimizer that does."
                )
        params = self.param_groups[index]["params"]
        _, fresh, _ = start(self.transform(saved), params)
        rows = {}
        for position, (param, key) in enumerate(zip(params, saved["params"], strict=False)):
            where = f"parameter {position} of group {index}"
            if row := loaded(state.get(key, {}), fresh[position], where):
                rows[param] = row
        return rows


def _move(params: list[Tensor], moved: list[Tensor], state: Any) -> Any:
    for param, new in zip(params, moved, strict=True):
        if new is not param:
            param.copy_(new)
    return state


def _gradient(param: Tensor, where: str) -> Tensor | None:
    if param.grad is None:
        return None
    if param.grad.layout is not torch.strided:
        raise ValueError(
            f"The gradient of parameter {where} is sparse. Make it dense (`sparse=False` in an "
            "embedding), or use an optimizer of torch.optim that takes it."
        )
    return param.grad.detach()
