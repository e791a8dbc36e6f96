"""Classifiers and regressors that are fitted in closed form: the last layers of few-shot nets."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from diffopt_implicit._batches import over_batches
from diffopt_implicit._linear_system import check_nonnegative, check_positive
from diffopt_implicit._solvers._splitting_solvers import OSQP
from diffopt_implicit._torch import any_true


def ridge(x: Tensor, y: Tensor, penalty: float | Tensor = 1.0) -> Tensor:
    """Fit a linear map to pairs, by least squares with a penalty.

    The minimum over ``W`` of ``|x W - y|^2 + penalty |W|^2``, by a system of as many unknowns as
    there are features or samples, whichever are fewer. For a bias, append a feature of ones to
    `x`; for a mean over samples, multiply `penalty` with their number.

    Args:
        x: Features, of the shape ``(..., n, d)``.
        y: Targets, of the shape ``(..., n, k)``, such as classes as unit vectors.
        penalty: At least 0: a number, or a tensor of the shape ``(...)``.

    Returns:
        ``W``, of the shape ``(..., d, k)``, differentiable in all arguments to any order.

    Raises:
        ValueError: If the system is singular, or shapes do not fit.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0], [2.0]])
        >>> ridge(x, y, 1.0)
        tensor([[0.5000],
                [0.8000]])

    Source:
        Bertinetto, Henriques, Torr & Vedaldi, *Meta-learning with differentiable closed-form
        solvers*, ICLR 2019, equations 4 and 6 (R2-D2).
    """
    check_nonnegative("penalty", penalty)
    if x.dim() < 2 or y.dim() < 2 or x.shape[-2] != y.shape[-2]:
        raise ValueError(
            "`x` and `y` must have the shapes (..., n, d) and (..., n, k), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    weight = torch.as_tensor(penalty, dtype=x.dtype, device=x.device)[..., None, None]
    samples, features = x.shape[-2:]
    if samples < features:  # by the identity of Woodbury
        return x.mT @ solve_regularized(x @ x.mT, weight, y)
    return solve_regularized(x.mT @ x, weight, x.mT @ y)


def solve_regularized(gram: Tensor, weight: Tensor, right: Tensor) -> Tensor:
    """Solve ``(gram + weight I) z = right`` by Cholesky's method."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    matrix = gram + weight * eye
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal(dim1=-2, dim2=-1) ** 2
    rounding = len(eye) * torch.finfo(gram.dtype).eps * matrix.diagonal(dim1=-2, dim2=-1)
    if any_true((failed != 0) | (pivots <= rounding).any(-1)):
        raise ValueError(
            "The least squares are singular: features or samples depend on one another, or are "
            "not finite. Raise `penalty`."
        )
    batch = torch.broadcast_shapes(matrix.shape[:-2], right.shape[:-2])
    right = right.expand(batch + right.shape[-2:])
    return torch.cholesky_solve(right, factor.expand(batch + factor.shape[-2:]))


def svm(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    C: float | Tensor = 1.0,
    solver: OSQP | None = None,
) -> Tensor:
    """Fit a linear support vector machine for several classes.

    The minimum over ``W`` of ``|W|^2 / 2 + C sum_i xi_i``, where the score ``x_i . w_k`` of each
    wrong class is below that of the right one by ``1 - xi_i`` at least, and ``xi_i >= 0``. It is
    found by its dual, a quadratic program of ``n * num_classes`` unknowns in a box, with one
    equation a sample.

    Args:
        x: Features, of the shape ``(..., n, d)``; there is no bias but a feature of ones.
        labels: Classes from 0 to `num_classes` - 1, integers of the shape ``(..., n)``.
        num_classes: How many.
        C: The weight of the errors, positive: a number, or a tensor of the shape ``(...)``.
        solver: How the dual is solved; default ``OSQP()``.

    Returns:
        ``W``, of the shape ``(..., d, num_classes)``: the scores are ``x @ W``. Differentiable in
        `x` and `C`, any number of times, by the support vectors.

    Raises:
        SolverError: If the dual is not solved.
        ValueError: If a label is out of range, or shapes do not fit.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> svm(x, torch.tensor([0, 1]), 2)
        tensor([[ 0.5000, -0.5000],
                [ 0.0000,  0.0000]])

    Source:
        Crammer & Singer, *On the algorithmic implementation of multiclass kernel-based vector
        machines*, JMLR 2, 2001; as a layer, Lee, Maji, Ravichandran & Soatto, *Meta-learning
        with differentiable convex optimization*, CVPR 2019 (MetaOptNet).
    """
    check_positive("C", C)
    classes = one_hot(x, labels, num_classes)
    weight = torch.as_tensor(C, dtype=x.dtype, device=x.device)
    core = partial(fitted_svm, OSQP() if solver is None else solver)
    return over_batches(core, (x, classes, weight), (2, 2, 0))


def fitted_svm(solver: OSQP, x: Tensor, classes: Tensor, C: Tensor) -> Tensor:
    """Solve the dual of one machine."""
    n, k = classes.shape
    eye = torch.eye(k, dtype=x.dtype, device=x.device)
    every = torch.eye(n * k, dtype=x.dtype, device=x.device)
    Q, right = torch.kron(x @ x.mT, eye), classes.reshape(-1)
    rows = every.reshape(n, k, n * k).sum(1)
    zero = torch.zeros_like(x[:, 0].detach())
    found = solver.run(None, (Q, -right), (rows, zero), (every, C * right)).params
    return x.mT @ found.primal.reshape(n, k)


def prototypes(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the mean of each class.

    Args:
        x: Features, of the shape ``(..., n, d)``.
        labels: Classes from 0 to `num_classes` - 1, integers of the shape ``(..., n)``.
        num_classes: How many.

    Returns:
        Of the shape ``(..., num_classes, d)``; 0 for a class without samples.

    Raises:
        ValueError: If a label is out of range, or shapes do not fit.

    Example:
        >>> import torch
        >>> prototypes(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[2.],
                [5.]])

    Source:
        Snell, Swersky & Zemel, *Prototypical networks for few-shot learning*, NeurIPS 2017,
        equation 1.
    """
    classes = one_hot(x, labels, num_classes)
    return classes.mT @ x / classes.sum(-2).clamp(min=1).unsqueeze(-1)


def matching_probabilities(x: Tensor, labels: Tensor, queries: Tensor, num_classes: int) -> Tensor:
    """Return the classes of queries by how similar they are to each sample.

    The softmax, over samples, of the cosines between query and sample, summed by class.

    Args:
        x: Features of the samples, ``(..., n, d)``.
        labels: Their classes, integers of the shape ``(..., n)``.
        queries: Features of the queries, ``(..., m, d)``.
        num_classes: How many classes.

    Returns:
        Probabilities, of the shape ``(..., m, num_classes)``. A vector of zeros has the cosine 0
        with all, and derivatives of 0.

    Raises:
        ValueError: If a label is out of range, or shapes do not fit.

    Example:
        >>> import torch
        >>> x, query = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0]])
        >>> matching_probabilities(x, torch.tensor([0, 1]), query, 2)
        tensor([[0.7311, 0.2689]])

    Source:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra, *Matching networks for one shot
        learning*, NeurIPS 2016, section 2.1.
    """
    classes = one_hot(x, labels, num_classes)
    cosines = normalized(queries) @ normalized(x).mT
    return cosines.softmax(-1) @ classes


def one_hot(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return classes as unit vectors in the dtype of `x`, and refuse labels that are none."""
    if x.dim() < 2 or labels.shape[-1:] != x.shape[-2:-1] or labels.is_floating_point():
        raise ValueError(
            "`labels` must be integers of the shape (..., n) for `x` of the shape (..., n, d), "
            f"got {labels.dtype} of the shape {tuple(labels.shape)} for {tuple(x.shape)}."
        )
    if any_true((labels < 0) | (labels >= num_classes)):
        raise ValueError(f"`labels` must be from 0 to `num_classes` - 1 = {num_classes - 1}.")
    numbers = torch.arange(num_classes, device=labels.device)
    return (labels.unsqueeze(-1) == numbers).to(x.dtype)


def normalized(x: Tensor) -> Tensor:
    """Return vectors of length 1, or 0."""
    square = (x * x).sum(-1, keepdim=True)
    # So that there is no derivative of a root at 0.
    return torch.where(square > 0, x / torch.where(square > 0, square, 1.0).sqrt(), 0.0)
