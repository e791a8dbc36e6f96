"""Functions whose minima are known, and solvers to find them."""

import torch
from diffopt_implicit import (
    BFGS,
    LBFGS,
    LBFGSB,
    AndersonWrapper,
    ArmijoSGD,
    BacktrackingLineSearch,
    BlockCoordinateDescent,
    GradientDescent,
    HagerZhangLineSearch,
    MirrorDescent,
    MirrorMap,
    NonlinearCG,
    OptimizerSolver,
    PolyakSGD,
    ProjectedGradient,
    ProximalGradient,
    ZoomLineSearch,
    projections,
    proximal,
)
from pytree_core import tree_map

QUASI = [LBFGS, BFGS, NonlinearCG]
SEARCHES = [
    ZoomLineSearch(),
    HagerZhangLineSearch(),
    BacktrackingLineSearch(),
    BacktrackingLineSearch("goldstein", c1=0.25),
    BacktrackingLineSearch("wolfe"),
    BacktrackingLineSearch("strong-wolfe"),
]


def himmelblau(x):
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


HIMMELBLAU = torch.tensor(
    [
        [3.0, 2.0],
        [3.584428340330, -1.848126526964],
        [-3.779310253378, -3.283185991286],
        [-2.805118086953, 3.131312518250],
    ],
    dtype=torch.float64,
)


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def matyas(x):
    return 0.26 * x.square().sum() - 0.48 * x[0] * x[1]


def zakharov(x):
    weighted = (0.5 * torch.arange(1, len(x) + 1, dtype=x.dtype) * x).sum()
    return x.square().sum() + weighted**2 + weighted**4


class SGD:
    """A transform, as those of diffopt-explicit are."""

    def __init__(self, lr):
        self.lr = lr

    def init(self, params):
        return ()

    def update(self, updates, state, params):
        return tree_map(lambda g: -self.lr * g, updates), state


def all_solvers(fun, step, **options):
    """Every solver of this file's families, with what `run` needs between start and arguments."""
    plain = {"stepsize": step, "acceleration": False}
    mirror = MirrorMap(lambda x: x, lambda x: x)
    infinite = (-torch.inf, torch.inf)
    return {
        "LBFGS": (LBFGS(fun, **options), ()),
        "BFGS": (BFGS(fun, **options), ()),
        "NonlinearCG": (NonlinearCG(fun, **options), ()),
        "GradientDescent": (GradientDescent(fun, **options), ()),
        "plain GradientDescent": (GradientDescent(fun, **plain, **options), ()),
        "ProximalGradient": (ProximalGradient(fun, proximal.none, **options), (None,)),
        "ProjectedGradient": (ProjectedGradient(fun, projections.box, **options), (infinite,)),
        "LBFGSB": (LBFGSB(fun, **options), (infinite,)),
        "MirrorDescent": (MirrorDescent(fun, step, mirror, **options), ()),
        "BlockCoordinateDescent": (BlockCoordinateDescent(fun, **options), (None,)),
        "ArmijoSGD": (ArmijoSGD(fun, **options), ()),
        "OptimizerSolver": (OptimizerSolver(fun, SGD(step), **options), ()),
        "AndersonWrapper": (AndersonWrapper(GradientDescent(fun, **plain), **options), ()),
        "PolyakSGD": (PolyakSGD(fun, **options), ()),
    }
