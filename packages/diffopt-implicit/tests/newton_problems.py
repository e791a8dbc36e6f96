"""Functions whose minima and roots are known."""

import torch

ONE = torch.ones((), dtype=torch.float64)


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def himmelblau(x):
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


HIMMELBLAU = torch.tensor(
    [
        [3.0, 2.0],
        [3.584428340, -1.848126527],
        [-3.779310253, -3.283185991],
        [-2.805118087, 3.131312518],
    ],
    dtype=torch.float64,
)

QUADRANTS = torch.tensor([[3.0, 1.0], [3.0, -1.0], [-3.0, -3.0], [-3.0, 3.0]]).double()

FAR = torch.tensor([-1.2, 1.0], dtype=torch.float64)


class Counted:
    """A function that counts its calls."""

    def __init__(self, fun):
        self.fun, self.calls = fun, 0

    def __call__(self, *args):
        self.calls += 1
        return self.fun(*args)


def tree_start():
    return {"u": torch.ones(2, dtype=torch.float64), "v": 0.5 * ONE}
