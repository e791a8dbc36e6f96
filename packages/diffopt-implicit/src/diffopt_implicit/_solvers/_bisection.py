"""Bisection, for roots of one unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pytree_core import tree_leaves
from torch import Tensor

from diffopt_implicit._solvers._implicit_only import check_implicit
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._status import SolverStatus, judged, running
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import any_true, is_wrapped


class BisectionState(NamedTuple):
    """The state of `Bisection`; scalars, of each example under `vmap`.

    Attributes:
        iter_num: Int64, updates.
        error: Half the length of the bracket, against 1 plus the size of its middle; 0 at a root.
        status: Int64, a `SolverStatus`.
        num_fun_eval: Int64, calls of the function.
        low: The lower end of the bracket.
        high: Its upper end.
        sign: That of the function at the lower end.
    """

    iter_num: Tensor
    error: Tensor
    status: Tensor
    num_fun_eval: Tensor
    low: Tensor
    high: Tensor
    sign: Tensor


@dataclass(frozen=True)
class Bisection(Solver):
    """Find a root of a continuous function between two points where it has opposite signs.

    It is called as ``run(None, *args)``, and batched by `torch.func.vmap`. Its iterates do not
    depend smoothly on anything, its limit does: derivatives are implicit ones, and `adjoint` is
    ``"implicit"`` or an `Implicit`.

    Attributes:
        fun: ``(x, *args, **kwargs) ->`` a scalar, zero at the root, of a scalar.
        lower: Where the bracket begins, a number or a scalar tensor.
        upper: Where it ends, above `lower`.
        tol: Stop once the root is known to ``tol (1 + |x|)``.
        check_bracket: Whether to refuse a bracket at whose ends the signs are equal, which waits
            for the device. Otherwise what is found there is one of the ends.

    Example:
        >>> import torch
        >>> a = torch.tensor(2.0, requires_grad=True)
        >>> x = Bisection(lambda x, a: x**2 - a, lower=0.0, upper=2.0, tol=1e-6).run(None, a).params
        >>> x, torch.autograd.grad(x, a)
        (tensor(1.4142, grad_fn=...), (tensor(0.3536),))

    Source:
        Burden & Faires, *Numerical Analysis*, 9th edition, 2010, section 2.1.
    """

    fun: Callable[..., Tensor]
    lower: float | Tensor
    upper: float | Tensor
    check_bracket: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_implicit(self)

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> BisectionState:
        """Return the state before the first update; `init_params` is not used."""
        del init_params
        like = working((self.lower, self.upper, args, kwargs))
        low, high = (
            torch.as_tensor(end, dtype=like.dtype, device=like.device)
            for end in (self.lower, self.upper)
        )
        ends = [self._value(x, args, kwargs) for x in (low, high)]
        if self.check_bracket and any_true(~(ends[0].sign() * ends[1].sign() <= 0) | (low > high)):
            raise ValueError(
                "`Bisection` needs `lower` below `upper`, with values of opposite signs there; got "
                f"{described(ends[0])} at {described(low)} and {described(ends[1])} at "
                f"{described(high)}. Widen the bracket, or look at the function."
            )
        # A root at an end is a bracket of no length.
        low, high = torch.where(ends[1] == 0, high, low), torch.where(ends[0] == 0, low, high)
        count = torch.zeros_like(ends[0] + low, dtype=torch.int64)
        error = torch.full_like(count, torch.inf, dtype=low.dtype)
        waiting = torch.full_like(count, SolverStatus.RUNNING)
        return BisectionState(count, error, waiting, count + 2, low, high, ends[0].sign())

    def update(self, params: Any, state: BisectionState, *args: Any, **kwargs: Any) -> OptStep:
        """Halve the bracket."""
        live = running(state)
        middle = state.low + 0.5 * (state.high - state.low)
        value = self._value(middle, args, kwargs)
        left = value.sign() == state.sign
        low = torch.where(live & (left | (value == 0)), middle, state.low)
        high = torch.where(live & ~left, middle, state.high)
        error = 0.5 * (high - low) / (1 + middle.abs())
        error = torch.where(value.isnan(), value, error)
        error = torch.where(live, error, state.error)
        after = BisectionState(
            state.iter_num + live,
            error,
            judged(state.status, error, self.tol),
            state.num_fun_eval + live,
            low,
            high,
            state.sign,
        )
        return OptStep(low + 0.5 * (high - low), after)

    def optimality_fun(self, params: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the value of the function."""
        return self.fun(params, *args, **kwargs)

    def _value(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        value = self.fun(x, *args, **kwargs)
        if not isinstance(value, Tensor) or value.dim() or x.dim():
            raise ValueError(
                "`Bisection` is for one equation in one unknown, both scalars: map over more with "
                "`torch.func.vmap`."
            )
        return value


def working(tree: Any) -> Tensor:
    """Return a scalar in the widest dtype, and on the device, of the tensors of a tree."""
    tensors = [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point()]
    dtype = torch.get_default_dtype() if not tensors else tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    device = tensors[0].device if tensors else None
    return torch.zeros((), dtype=dtype, device=device)


def described(value: Tensor) -> str:
    """Tell a number, if it can be looked at."""
    return f"{value.item():.3g}" if not is_wrapped(value) else "values"
