"""What the tests of constrained minimizers have in common."""

import torch

ONE = torch.ones((), dtype=torch.float64)


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def least_squares(w, x, y):
    return 0.5 * (x @ w - y).square().mean()


def quadratic(x, q, c):
    return 0.5 * x @ q @ x + c @ x
