"""`DEQ`: a layer whose output is a fixed point, and the ways to its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from pytree_core import tree_leaves, tree_map
from torch import Tensor, nn
from torch.func import functional_call

from diffopt_implicit._condition import LinearSolver, attach_root
from diffopt_implicit._fixed_point import FixedPointResidual
from diffopt_implicit._linear_info import OnFailure
from diffopt_implicit._linear_system import MatVec, Tree, check_positive, size_of
from diffopt_implicit._root_check import RootCheck
from diffopt_implicit._solvers._fixed_point_solvers import AndersonAcceleration, check_share
from diffopt_implicit._solvers._solver import Solver
from diffopt_implicit._solvers._step import OptStep
from diffopt_implicit._torch import outside_graphs

EACH_ON_ITS_OWN = partial(
    AndersonAcceleration, tol=1e-4, maxiter=100, batched=True, on_failure="ignore"
)


def solve_each(
    matvec: MatVec, b: Tree, *, tol: float = 1e-4, maxiter: int = 60, on_failure: OnFailure = "warn"
) -> Tree:
    """Solve ``A u = b`` for an ``A`` that acts on each example of a batch alone, near I.

    Anderson's acceleration of ``u <- u + b - A u``, whose examples have coefficients of their
    own and stop on their own: a Krylov space of the whole batch grows with its size.
    """
    size = max_of(tree_leaves(b))
    unit = tree_map(lambda leaf: leaf / size, b)
    solver = AndersonAcceleration(
        lambda u: tree_map(lambda u, b, a: u + b - a, u, unit, matvec(u)),
        memory=20,
        tol=tol,
        maxiter=maxiter,
        batched=True,
        on_failure=on_failure,
    )
    return tree_map(lambda u: u * size, solver.iterate(unit).params)


def max_of(leaves: list[Tensor]) -> Tensor:
    """Return the largest absolute value, or 1 where all are 0."""
    return torch.stack([size_of(leaf) for leaf in leaves]).amax()


class DEQBackward(Protocol):
    """A way to the gradient of a fixed point: a frozen value, passed as ``backward=``.

    Example:
        >>> PhantomGradient(5, damping=0.5)
        PhantomGradient(steps=5, damping=0.5)
    """

    def __call__(self, layer: nn.Module, z: Tree, x: Tree) -> Tree:
        """Return `z`, or what a step from it gives, with a path to parameters and input."""
        ...


@dataclass(frozen=True)
class ImplicitBackward:
    """The exact gradient, by the implicit function theorem.

    Attributes:
        solve: The linear solver, of ``(I - d layer / dz)^T u = v``. The default is for layers
            that take each example of a batch alone, and solves to a relative 1e-4; for others,
            or to rounding, give `solve_gmres` or `solve_normal_cg`.
        on_inexact_root: What to do where the fixed point of any example is too far from one, as
            of `custom_root`.

    Example:
        >>> ImplicitBackward().on_inexact_root
        'warn'

    Source:
        Bai, Kolter & Koltun, *Deep equilibrium models*, NeurIPS 2019, theorem 1.
    """

    solve: LinearSolver = solve_each
    on_inexact_root: OnFailure = "warn"

    def __call__(self, layer: nn.Module, z: Tree, x: Tree) -> Tree:
        """Return `z`, differentiable."""

        def stepped(z: Tree, params: dict[str, Tensor], x: Tree) -> Tree:
            return functional_call(layer, params, (z, x))

        params = dict(layer.named_parameters())
        check = RootCheck(on_inexact=self.on_inexact_root, each=True)
        residual = FixedPointResidual(stepped)
        return attach_root(residual, z, (params, x), {}, self.solve, check, "`layer`")


@dataclass(frozen=True)
class PhantomGradient:
    """The gradient of some damped steps from the fixed point, recorded by autograd.

    ``z <- damping z + (1 - damping) layer(z, x)``. One step without damping is the one-step, or
    Jacobian-free, gradient.

    Attributes:
        steps: How many, positive.
        damping: Share of ``z`` that is kept, in [0, 1).

    Example:
        >>> PhantomGradient()
        PhantomGradient(steps=1, damping=0.0)

    Source:
        Geng, Zhang, Bai, Wang & Lin, *On training implicit models*, NeurIPS 2021, eq. 8; of one
        step, Fung et al., *JFB: Jacobian-free backpropagation for implicit networks*, AAAI 2022.
    """

    steps: int = 1
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_positive("steps", self.steps)
        check_share("damping", self.damping)

    def __call__(self, layer: nn.Module, z: Tree, x: Tree) -> Tree:
        """Step from `z`."""
        for _ in range(self.steps):
            image = layer(z, x)
            z = tree_map(lambda old, new: self.damping * old + (1 - self.damping) * new, z, image)
        return z


class DEQ(nn.Module):
    """A deep equilibrium layer: the ``z`` with ``z = layer(z, x)``.

    Memory does not grow with the iterations, of which nothing is kept. Each example stops on
    its own. The fixed point of the last call makes a warm start of the next, as ``init=``.

    Args:
        layer: ``(z, x) ->`` like ``z``. Without dropout in training mode, or batch norm that
            updates its statistics, where the backward is implicit: the error says so.
        solver: Makes a `Solver` for a function ``z -> z``; default `AndersonAcceleration` with
            ``tol=1e-4, maxiter=100, batched=True``. `FixedPointIteration` will do, and
            ``lambda T: Broyden(lambda z: z - T(z), batched=True)``.
        backward: `ImplicitBackward` or `PhantomGradient`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Layer(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.tensor(0.5))
        ...     def forward(self, z, x):
        ...         return self.weight * z + x
        >>> deq = DEQ(Layer())
        >>> deq(torch.ones(1, 1)).backward()  # z = x / (1 - weight)
        >>> round(deq.layer.weight.grad.item(), 3)
        4.0

    Source:
        Bai, Kolter & Koltun, *Deep equilibrium models*, NeurIPS 2019.
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        solver: Callable[[Callable[[Tree], Tree]], Solver] = EACH_ON_ITS_OWN,
        backward: DEQBackward = ImplicitBackward(),
    ) -> None:
        super().__init__()
        self.layer, self.solver, self.backward = layer, solver, backward

    @outside_graphs
    def forward(self, x: Tree, init: Tree | None = None) -> Tree:
        """Return the fixed point.

        Args:
            x: What the layer is given besides ``z``, any tree.
            init: Where to start, what ``z`` looks like, its first dimension counting examples;
                default zeros like `x`.

        Returns:
            A tree like `init`, differentiable in the layer's parameters and in `x`.
        """
        z = self.solve(x, init).params
        return self.backward(self.layer, z, x) if torch.is_grad_enabled() else z

    @torch.no_grad()
    def solve(self, x: Tree, init: Tree | None = None) -> OptStep:
        """Return the fixed point without gradient, and the solver's last state."""
        start = tree_map(torch.zeros_like, x) if init is None else init
        solver = self.solver(lambda z: self.layer(z, x))
        return solver.iterate(tree_map(torch.Tensor.detach, start))


def jacobian_penalty(
    func: Callable[[Tensor], Tensor],
    z: Tensor,
    *,
    probes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate the mean square of the Jacobian's singular values: ``|d func/dz|_F^2 / n``.

    Added to a loss it keeps the layer of a `DEQ` near a contraction, whose fixed point is found
    in few iterations.

    Args:
        func: From a tensor like `z` to one of its shape.
        z: Of ``n`` elements; taken as constant.
        probes: How many normal vectors to estimate by.
        generator: Of these vectors.

    Returns:
        A scalar, differentiable in what `func` closes over. Its expectation is exact.

    Raises:
        ValueError: If `func` returns another shape.

    Example:
        >>> import torch
        >>> weight = torch.tensor(3.0, requires_grad=True)
        >>> z = torch.zeros(10_000)
        >>> bool((jacobian_penalty(lambda z: weight * z, z) - 9).abs() < 0.5)
        True

    Source:
        Bai, Koltun & Kolter, *Stabilizing equilibrium models by Jacobian regularization*, ICML
        2021, eq. 4, after Hutchinson, 1989.
    """
    check_positive("probes", probes)
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        image = func(point)
        if image.shape != z.shape:
            raise ValueError(
                f"`func` must return a tensor of the shape of `z`, {tuple(z.shape)}, got "
                f"{tuple(image.shape)}."
            )
        total = image.new_zeros(())
        for _ in range(probes):
            probe = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
            (pulled,) = torch.autograd.grad(image, point, probe, create_graph=True)
            total = total + pulled.square().sum()
    return total / (probes * z.numel())
