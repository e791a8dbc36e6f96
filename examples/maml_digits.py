"""Few-shot learning of handwritten digits by MAML, on real images.

From tasks made of the digits 0-4, a small convolutional network learns where to begin, and with
which learning rates, so that a few steps of Adam on one image a class suffice to tell apart the
digits 5-9, which it has never seen. Beside it stands the same network, adapted from scratch on the
same images with the best of several learning rates, and more steps. The tasks, in which images lie
at random places, and the network are those of `few_shot_digits.py`.

Shows: `unroll` for the inner loop, the fused Adam inside with a learned rate for each weight,
`torch.optim` outside, the gradient graph of one meta-step as a picture.

Expected, in about a minute: after five steps of Adam 54 % of the unseen digits are told apart,
where from scratch five steps reach 40 % and fifty steps 43 %; chance is 20 %.

Source: Finn, Abbeel & Levine, *Model-agnostic meta-learning*, ICML 2017, algorithm 2; Li, Zhou,
Chen & Li, *Meta-SGD*, 2017. Data: scikit-learn's digits, 1,797 images of 8x8 pixels.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from diffopt_explicit import Transform, adam, unroll
from diffopt_explicit.tasks import NWayKShot, Task
from diffopt_viz import build_graph
from few_shot_digits import INNER_STEPS, Curve, Function, accuracy, digit_tasks, draw, network
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from tqdm import tqdm

INNER_RATE, EPS = 0.02, 1e-3
OUTER_RATE, OUTER_RATE_OF_RATES, TASKS_PER_STEP = 3e-3, 2e-2, 4
SCRATCH_STEPS, SCRATCH_RATES = (5, 50), (0.001, 0.003, 0.01, 0.03)
NETWORK = network()

Params = dict[str, Tensor]


def loss(params: Params, images: Tensor, labels: Tensor) -> Tensor:
    """How badly the network reads images with some parameters."""
    return cross_entropy(functional_call(NETWORK, params, (images,)), labels)


def inner(log_rates: Params) -> Transform:
    """Adam with a learning rate for each weight.

    Its `eps` is large, because with a small one the first step goes by the signs of the gradient
    alone, and hardly tells the outer loop how to change it.
    """
    return adam(lr={name: rate.exp() for name, rate in log_rates.items()}, eps=EPS)


def adapt(params: Params, tx: Transform, task: Task, steps: int = INNER_STEPS) -> Params:
    """The parameters after some steps on the support images, as a function of the initial ones."""
    return unroll(lambda p: loss(p, task.support_x, task.support_y), tx, params, steps=steps).params


@torch.no_grad()
def judge(params: Params, tx: Transform, tasks: list[Task], steps: int = INNER_STEPS) -> float:
    """The share of query images read right, after adaptation."""

    def adapted(task: Task) -> Function:
        return partial(functional_call, NETWORK, adapt(params, tx, task, steps))

    return accuracy(adapted, tasks)


def meta_learn(
    params: Params, log_rates: Params, tasks: NWayKShot, watched: list[Task], steps: int
) -> Curve:
    """Learn where to begin, and the logarithms of the rates; return the accuracy on the way."""
    learned = zip((params, log_rates), (OUTER_RATE, OUTER_RATE_OF_RATES), strict=True)
    groups = [{"params": list(part.values()), "lr": rate} for part, rate in learned]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    curve = [(0, judge(params, inner(log_rates), watched))]
    with tqdm(range(1, steps + 1), desc="meta-learning on digits 0-4") as bar:
        for step in bar:
            optimizer.zero_grad()
            for _ in range(TASKS_PER_STEP):
                task = tasks.sample()
                adapted = adapt(params, inner(log_rates), task)
                (loss(adapted, task.query_x, task.query_y) / TASKS_PER_STEP).backward()
            optimizer.step()
            schedule.step()
            if step % max(steps // 12, 1) == 0 or step == steps:
                curve.append((step, judge(params, inner(log_rates), watched)))
                bar.set_postfix_str(f"accuracy on unseen digits {curve[-1][1]:.1%}")
    return curve


def draw_meta_step(params: Params, log_rates: Params, task: Task, path: Path) -> None:
    """Draw the gradient graph of the outer loss after two inner steps."""
    names = {**params, **{f"log lr of {name}": rate for name, rate in log_rates.items()}}
    adapted = params
    for step in (1, 2):
        adapted = adapt(adapted, inner(log_rates), task, steps=1)
        names.update({f"step {step} / {name}": value for name, value in adapted.items()})
    graph = build_graph({"outer loss": loss(adapted, task.query_x, task.query_y)}, names)
    path.write_text(graph.to_svg())


def main() -> None:
    """Meta-learn, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small, and the numbers the same on any machine
    steps = 20 if options.quick else 300
    seen = digit_tasks(range(5), symmetries=8, seed=0)
    unseen = digit_tasks(range(5, 10), symmetries=1, seed=1)
    tuning, watched, judged = (
        [tasks.sample() for _ in range(5 if options.quick else n)]
        for tasks, n in ((seen, 20), (unseen, 20), (unseen, 100))
    )

    params = {name: p.detach().clone().requires_grad_() for name, p in NETWORK.named_parameters()}
    rates = {name: torch.full_like(p, INNER_RATE) for name, p in params.items()}
    log_rates = {name: rate.log().requires_grad_() for name, rate in rates.items()}
    curve = meta_learn(params, log_rates, seen, watched, steps)
    before, after = (judge(params, inner(log_rates), judged, steps=n) for n in (0, INNER_STEPS))
    print(f"MAML: accuracy {before:.1%} -> {after:.1%} after {INNER_STEPS} steps of Adam")
    start: Params = dict(NETWORK.named_parameters())
    scratch: dict[str, float] = {}
    for count in SCRATCH_STEPS:
        on_seen = [judge(start, adam(rate), tuning, count) for rate in SCRATCH_RATES]
        rate = SCRATCH_RATES[on_seen.index(max(on_seen))]
        name, reached = f"from scratch, {count} steps", judge(start, adam(rate), judged, count)
        scratch[name] = reached
        print(f"{name}: accuracy {reached:.1%} with the best rate, {rate}")

    options.results.mkdir(parents=True, exist_ok=True)
    picture, graph = options.results / "maml_digits.png", options.results / "meta_step.svg"
    draw({f"MAML, {INNER_STEPS} steps of Adam": curve}, picture, across=scratch)
    draw_meta_step(params, log_rates, tuning[0], graph)
    print(f"Learning curve: {picture}\nGradient graph of a meta-step: {graph}")


if __name__ == "__main__":
    main()
