"""Roots whose derivatives are known."""

import torch
from diffopt_implicit import custom_root
from implicit_problems import (
    cube,
    newton_cube_root,
)

ONE = torch.ones((), dtype=torch.float64)


@custom_root(cube)
def cube_root(init, a):
    return newton_cube_root(init, a)


def root(a):
    return cube_root(torch.ones_like(a), a)
