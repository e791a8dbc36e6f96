"""A quadratic program as a layer: what "smooth" means, learned from clean signals.

Noise is taken from a signal x by the z that minimizes |z - x|^2 / 2 + |d * z|_1, where a filter d
runs along the signal. With the difference of neighbours this is total variation: it likes signals
that are flat but for some jumps. The signals here are not: they are made of straight lines, with
kinks and no jumps. So d is learned: differences weighted by four numbers, which follow the gradient
of the error of z, the solution of a quadratic program. They begin as total variation, with the
strength that is best for these signals. What would be right is known: second differences.

Shows: `BoxQP` under `torch.func.vmap`, differentiated in its matrix and in its vector.

Expected, in a minute: of a mean squared error of 0.091 total variation leaves 0.040 and the learned
filter 0.017, with weights (0.1, 0.8, -0.4, -0.5): nearly a difference of differences. The best
multiple of second differences leaves 0.016.

Source: Amos & Kolter, *OptNet: differentiable optimization as a layer in neural networks*, ICML
2017, section 4.2; the signals: Kim, Koh, Boyd & Gorinevsky, *l1 trend filtering*, SIAM Review 2009.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
from diffopt_implicit import BoxQP
from torch import Tensor
from torch.func import vmap
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

LENGTH, KINKS, NOISE = 40, 2, 0.3
TRAIN, BATCH, OUTER_RATE = 500, 20, 0.03
FILTERS = {"total variation": [0, 1, 0, 0], "second differences": [0, 1, -1, 0]}
STRENGTHS = torch.logspace(-1.5, 1, 11, dtype=torch.float64)


def signals(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Signals of straight lines, noisy and clean, of the shape (count, length)."""
    times = torch.linspace(0, 1, LENGTH, dtype=torch.float64)
    drawn = torch.randn(2 + KINKS, count, 1, generator=generator, dtype=torch.float64)
    places = torch.rand(KINKS, count, 1, generator=generator, dtype=torch.float64)
    clean = drawn[0] + 3 * drawn[1] * times
    clean = clean + (8 * drawn[2:] * (times - places).clamp(min=0)).sum(0)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    return clean + NOISE * noise, clean


def denoise(taps: Tensor, noisy: Tensor) -> Tensor:
    """The minimum of ``|z - x|^2 / 2 + |D z|_1`` for each row x of a batch.

    The rows of D are differences, weighted by four taps. The minimum is
    ``x - D^T u`` for the ``u`` between -1 and 1 for which this is shortest.
    """
    differences = torch.eye(LENGTH, dtype=torch.float64).diff(dim=0)
    operator = differences.unfold(0, len(taps), 1) @ taps  # (length - 4, length)

    def shortest(x: Tensor) -> Tensor:
        return BoxQP().run(None, (operator @ operator.T, -operator @ x), (-1.0, 1.0)).params.primal

    return noisy - vmap(shortest)(noisy) @ operator


def error(taps: Tensor, part: tuple[Tensor, Tensor]) -> Tensor:
    """The mean squared error of some signals."""
    return (denoise(taps, part[0]) - part[1]).square().mean()


@torch.no_grad()
def best_strength(filter_: list[int], part: tuple[Tensor, Tensor]) -> Tensor:
    """The multiple of a filter with the least error."""
    multiples = [strength * torch.tensor(filter_).double() for strength in STRENGTHS]
    return min(multiples, key=lambda taps: error(taps, part).item())


def learn(
    taps: Tensor, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], steps: int
) -> tuple[Tensor, list[tuple[int, float]]]:
    """Learn a filter; return it, and the error on test signals meanwhile."""
    taps = taps.clone().requires_grad_()
    adam = torch.optim.Adam([taps], lr=OUTER_RATE)
    generator, curve = torch.Generator().manual_seed(0), []
    with tqdm(range(steps + 1), desc="learning what is smooth") as bar:
        for step in bar:
            if step % max(steps // 8, 1) == 0:
                with torch.no_grad():
                    curve.append((step, error(taps, test).item()))
                bar.set_postfix_str(f"test error {curve[-1][1]:.4f}")
            which = torch.randint(TRAIN, (BATCH,), generator=generator)
            adam.zero_grad()
            error(taps, (train[0][which], train[1][which])).backward()
            adam.step()
    return taps.detach(), curve


def draw(
    filters: dict[str, Tensor],
    test: tuple[Tensor, Tensor],
    curve: list[tuple[int, float]],
    path: Path,
) -> None:
    """Draw the error while learning, a signal, and the filters."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    left.plot(*zip(*curve, strict=True), marker="o", color="C2", label="learned")
    middle.plot(test[0][0], ".", color="gray", label="noisy")
    middle.plot(test[1][0], color="black", linestyle=":", label="clean")
    for name, taps in filters.items():
        if name != "learned":
            value, color = error(taps, test).item(), f"C{len(left.lines) - 1}"
            left.axhline(value, linestyle=":", color=color, label=name)
        middle.plot(denoise(taps, test[0][:1])[0], label=name)
        right.plot(taps, marker="o", label=name)
    left.set(xlabel="step", ylabel="mean squared error", title="test signals", ylim=(0, None))
    middle.set(title="a test signal")
    right.set(title="the filters", xlabel="tap, of the differences")
    left.legend()
    middle.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Learn, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the programs are small
    generator = torch.Generator().manual_seed(0)
    train, test = signals(TRAIN, generator), signals(30 if options.quick else 300, generator)
    count = 10 if options.quick else 50  # to find the strengths by
    few = train[0][:count], train[1][:count]
    filters = {name: best_strength(taps, few) for name, taps in FILTERS.items()}
    steps = 16 if options.quick else 150
    filters["learned"], curve = learn(filters["total variation"], train, test, steps)
    print(f"noisy signals: mean squared error {(test[0] - test[1]).square().mean():.4f}")
    for name, taps in filters.items():
        numbers = " ".join(f"{tap:.2f}" for tap in taps)
        print(f"{name}: mean squared error {error(taps, test):.4f} with {numbers}")
    draw(filters, test, curve, options.results / "optnet_layer.png")


if __name__ == "__main__":
    main()
