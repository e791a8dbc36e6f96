"""What the tests of the doctor have in common."""

import torch


def scalar(value):
    return torch.tensor(value, requires_grad=True)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round() + 0

    @staticmethod
    def backward(ctx, grad):
        return grad
