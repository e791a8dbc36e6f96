"""Whether the derivatives of torch's own operations are right, beyond the first.

Each operation is made a function of one float64 vector, and its derivatives of second and third
order in random directions are taken by `torch.func` in every mode: reverse over reverse, forward
over reverse, reverse over forward, forward over forward; three times reverse, and forward over
reverse over reverse. The truth are central differences of the gradient, and of the product of the
second derivative with a vector as reverse over reverse has it, where that is right itself. What
is told is ``ok``, the relative error of what is wrong, or that there is no such derivative.

    nox -s bench, or python benchmarks/audit_derivatives.py [--results FOLDER]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from diffopt_explicit import higher_order
from torch import Tensor, nn
from torch.nn import functional

Scalar = Callable[[Tensor], Tensor]
TOLERANCE, STEP = 1e-5, 1e-5
N = 3  # matrices are N x N


def matrix(x: Tensor) -> Tensor:
    """A matrix, invertible."""
    return x[: N * N].view(N, N) + 3 * torch.eye(N)


def positive(x: Tensor) -> Tensor:
    """A matrix, positive definite."""
    a = matrix(x)
    return a @ a.mT + torch.eye(N)


def images(x: Tensor) -> Tensor:
    """A batch of images with two channels."""
    return x[:16].view(2, 2, 2, 2)


def attend(x: Tensor) -> Tensor:
    """Queries, keys and values, all different."""
    q, k, v = x[:48].view(3, 1, 2, 4, 2).unbind()
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def recurrent(kind: type[nn.Module]) -> Scalar:
    """A recurrent layer."""
    torch.manual_seed(0)
    module = kind(2, 3).double()
    return lambda x: module(x[:12].view(3, 2, 2))[0]


def self_attention() -> Scalar:
    """A layer of attention that returns no weights."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    return lambda x: module(*[x[:24].view(2, 3, 4)] * 3, need_weights=False)[0]


TARGET = torch.tensor([1, 0, 2])
OPERATIONS: dict[str, Scalar] = {
    "layer_norm": lambda x: functional.layer_norm(x[:12].view(3, 4), (4,)),
    "batch_norm, training": lambda x: functional.batch_norm(images(x), None, None, training=True),
    "instance_norm": lambda x: functional.instance_norm(images(x)),
    "group_norm": lambda x: functional.group_norm(images(x), 2),
    "rms_norm": lambda x: functional.rms_norm(x[:12].view(3, 4), (4,)),
    "normalize": lambda x: functional.normalize(x[:12].view(3, 4)),
    "softmax": lambda x: x[:12].view(3, 4).softmax(1),
    "log_softmax": lambda x: x[:12].view(3, 4).log_softmax(1),
    "logsumexp": lambda x: x[:12].view(3, 4).logsumexp(1),
    "cross_entropy": lambda x: functional.cross_entropy(x[:12].view(3, 4), TARGET),
    "binary_cross_entropy_with_logits": lambda x: functional.binary_cross_entropy_with_logits(
        x[:4], torch.tensor([0.0, 1.0, 0.5, 0.2])
    ),
    "mse_loss": lambda x: functional.mse_loss(x[:4], x[4:8]),
    "huber_loss": lambda x: functional.huber_loss(x[:8], x[8:16]),
    "smooth_l1_loss": lambda x: functional.smooth_l1_loss(x[:8], x[8:16]),
    "kl_div": lambda x: functional.kl_div(x[:4].log_softmax(0), x[4:8].softmax(0), reduction="sum"),
    "gelu": lambda x: functional.gelu(x),
    "gelu, tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": lambda x: functional.silu(x),
    "mish": lambda x: functional.mish(x),
    "softplus": lambda x: functional.softplus(x),
    "elu": lambda x: functional.elu(x),
    "celu": lambda x: functional.celu(x),
    "selu": lambda x: functional.selu(x),
    "logsigmoid": lambda x: functional.logsigmoid(x),
    "tanh": lambda x: x.tanh(),
    "sigmoid": lambda x: x.sigmoid(),
    "erf": lambda x: x.erf(),
    "prod": lambda x: x[:12].view(3, 4).prod(1),
    "cumprod": lambda x: x[:12].view(3, 4).cumprod(1),
    "std": lambda x: x[:12].view(3, 4).std(1),
    "var": lambda x: x[:12].view(3, 4).var(1),
    "linalg.vector_norm": lambda x: torch.linalg.vector_norm(x[:12].view(3, 4), dim=1),
    "cdist": lambda x: torch.cdist(x[:6].view(3, 2), x[6:12].view(3, 2)),
    "conv1d": lambda x: functional.conv1d(x[:16].view(2, 2, 4), x[16:24].view(2, 2, 2)),
    "conv2d": lambda x: functional.conv2d(images(x), x[16:32].view(2, 2, 2, 2), padding=1),
    "conv_transpose2d": lambda x: functional.conv_transpose2d(images(x), images(x[16:])),
    "avg_pool2d": lambda x: functional.avg_pool2d(images(x), 2) ** 2,
    "max_pool2d": lambda x: functional.max_pool2d(images(x), 2) ** 2,
    "interpolate, bilinear": lambda x: (
        functional.interpolate(images(x), scale_factor=2, mode="bilinear") ** 2
    ),
    "grid_sample": lambda x: functional.grid_sample(
        images(x), x[16:32].view(2, 2, 2, 2).tanh() * 0.3, align_corners=True
    ),
    "bilinear": lambda x: functional.bilinear(
        x[:4].view(2, 2), x[4:8].view(2, 2), x[8:16].view(2, 2, 2)
    ),
    "embedding": lambda x: functional.embedding(TARGET, x[:8].view(4, 2)) ** 3,
    "embedding_bag": lambda x: functional.embedding_bag(TARGET[None], x[:8].view(4, 2)) ** 3,
    "einsum": lambda x: torch.einsum("ij,jk,ik->i", matrix(x), matrix(x), matrix(x)),
    "attention": attend,
    "MultiheadAttention": self_attention(),
    "LSTM": recurrent(nn.LSTM),
    "GRU": recurrent(nn.GRU),
    "linalg.solve": lambda x: torch.linalg.solve(matrix(x), x[9:12]),
    "linalg.inv": lambda x: torch.linalg.inv(matrix(x)),
    "linalg.pinv": lambda x: torch.linalg.pinv(matrix(x)),
    "linalg.det": lambda x: torch.linalg.det(matrix(x)),
    "linalg.slogdet": lambda x: torch.linalg.slogdet(matrix(x))[1],
    "linalg.cholesky": lambda x: torch.linalg.cholesky(positive(x)),
    "cholesky_solve": lambda x: torch.cholesky_solve(
        x[9:12, None], torch.linalg.cholesky(positive(x))
    ),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(torch.linalg.cholesky(positive(x))),
    "linalg.solve_triangular": lambda x: torch.linalg.solve_triangular(
        matrix(x).tril(), x[9:12, None], upper=False
    ),
    "linalg.lu_factor": lambda x: torch.linalg.lu_factor(matrix(x))[0],
    "linalg.qr": lambda x: torch.linalg.qr(matrix(x))[1],
    "linalg.eigvalsh": lambda x: torch.linalg.eigvalsh(positive(x)),
    "linalg.eigh": lambda x: torch.linalg.eigh(positive(x))[1].square(),
    "linalg.svdvals": lambda x: torch.linalg.svdvals(matrix(x)),
    "linalg.lstsq": lambda x: torch.linalg.lstsq(matrix(x), x[9:12, None])[0],
    "linalg.matrix_exp": lambda x: torch.linalg.matrix_exp(matrix(x) / 3),
    "linalg.matrix_norm": lambda x: torch.linalg.matrix_norm(matrix(x)),
    "fft": lambda x: torch.fft.rfft(x[:8]).abs(),
}


def reverse(f: Scalar, u: Tensor) -> Scalar:
    """The derivative of f in direction u, by reverse mode."""
    return lambda x: (torch.func.grad(f)(x) * u).sum()


def forward(f: Scalar, u: Tensor) -> Scalar:
    """The derivative of f in direction u, by forward mode."""
    return lambda x: torch.func.jvp(f, (x,), (u,))[1]


MODES: dict[str, list[Callable[[Scalar, Tensor], Scalar]]] = {  # from the innermost on
    "rev-rev": [reverse, reverse],
    "fwd-rev": [reverse, forward],
    "rev-fwd": [forward, reverse],
    "fwd-fwd": [forward, forward],
    "rev-rev-rev": [reverse, reverse, reverse],
    "fwd-rev-rev": [reverse, reverse, forward],
}


def verdict(steps: list[Callable[[Scalar, Tensor], Scalar]], f: Scalar) -> str:
    """Compare a derivative of f with the difference of that of one order less."""
    x, *directions = torch.randn(4, 48, generator=torch.Generator().manual_seed(1)).unbind()
    derivative, below = f, f
    *others, last = directions[: len(steps)]
    for u in others:
        below = reverse(below, u)
    try:
        for step, u in zip(steps, [*others, last], strict=True):
            derivative = step(derivative, u)
        actual = derivative(x)
        truth = (below(x + STEP * last) - below(x - STEP * last)) / (2 * STEP)
    except RuntimeError:
        return "none"
    error = ((actual - truth).abs() / truth.abs().clamp(min=1e-3)).item()
    return "ok" if error < TOLERANCE else f"**{error:.1g}**"


def audit(operation: Scalar) -> dict[str, str]:
    """A verdict for each mode."""

    def f(x: Tensor) -> Tensor:
        out = operation(x)
        weights = torch.linspace(-1, 2, out.numel()).view_as(out)
        return (out * weights).sum() + (out**3).sum()

    return {mode: verdict(steps, f) for mode, steps in MODES.items()}


def markdown(title: str, verdicts: dict[str, dict[str, str]]) -> str:
    """A table with a row for each operation."""
    lines = [f"## {title}", "", f"| | {' | '.join(MODES)} |", "|---" * (len(MODES) + 1) + "|"]
    for name, row in verdicts.items():
        lines.append(f"| {name} | {' | '.join(row.values())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Audit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    plain = {name: audit(operation) for name, operation in OPERATIONS.items()}
    with higher_order():
        ours = {name: audit(operation) for name, operation in OPERATIONS.items()}
    changed = {name: row for name, row in ours.items() if row != plain[name]}
    introduction = (
        f"# Derivatives of torch {torch.__version__}\n\n"
        "By `benchmarks/audit_derivatives.py`, in float64 on the CPU. `ok` is a relative error "
        f"below {TOLERANCE:.0e} against central differences; what is wrong without a word is told "
        "with its error, in bold; `none` raises an error. rev-fwd is reverse over forward mode, by "
        "nested transforms of `torch.func`.\n"
    )
    second = markdown("In `higher_order()`, where it differs", changed)
    text = "\n".join([introduction, markdown("As it is", plain), second])
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "derivatives.md").write_text(text)
    found = {"torch": torch.__version__, "date": date.today().isoformat()}
    document = {**found, "plain": plain, "higher_order": ours}
    (options.results / "derivatives.json").write_text(json.dumps(document, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
