"""Learners that take each other's learning into account find tit-for-tat: LOLA and LOLA-DiCE.

Two agents play the iterated prisoner's dilemma, remembering the last round. Naive learners ascend
their own value and end up defecting. A LOLA agent ascends the value that it would have *after* the
other's next step of learning, and differentiates through that step: it learns to answer defection
with defection, so that the other learns to cooperate. With exact values all derivatives are closed
forms; LOLA-DiCE plays games instead and estimates the same derivatives. Six pairs learn each way.

Shows: `unroll` of another's step, inside of a loss; `dice`, differentiated twice.

Expected, in about a minute: naive learners lose 2.0 years a round on average; LOLA agents 1.1 with
exact values and 1.3 with sampled games, where 1.0 is cooperation. What they have found is close to
tit-for-tat: after the other cooperated they do with a probability of 0.8 to 0.9, after both
defected with one of 0.2 and 0.0, and after they alone cooperated with one of 0.3.

Source: Foerster et al., *Learning with opponent-learning awareness*, AAMAS 2018, table 3; *DiCE*,
ICML 2018, section 5; Farquhar, Whiteson & Foerster, *Loaded DiCE*, NeurIPS 2019, for the estimate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from diffopt_explicit import sgd, unroll
from diffopt_zeroorder import dice
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

DISCOUNT, PAIRS = 0.96, 6
YEARS = torch.tensor([-1.0, -3.0, 0.0, -2.0])  # of (own, other) in CC, CD, DC, DD
SEEN = [0, 1, 3, 2, 4]  # what the other calls an agent's situations: start, CC, CD, DC, DD
ROUNDS, GAMES = 100, 400  # that LOLA-DiCE plays for an estimate


def exact_value(own: Tensor, other: Tensor) -> Tensor:
    """Mean years a round, discounted, by policies (pairs, 5): the logits of cooperating."""
    p, q = own.sigmoid(), other.sigmoid()[:, SEEN]
    rounds = torch.stack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)], dim=2)
    start, transitions = rounds[:, 0], rounds[:, 1:]
    visits = torch.linalg.solve(torch.eye(4) - DISCOUNT * transitions.mT, start[..., None])
    return (1 - DISCOUNT) * visits[..., 0] @ YEARS


def played(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Play: situations, and cooperation of both, all of the shape (pairs, games, rounds)."""
    chances = torch.stack([own.sigmoid(), other.sigmoid()[:, SEEN]])
    situation, record = torch.zeros(len(own), GAMES, dtype=torch.long), []
    for thrown in torch.rand(ROUNDS, 2, len(own), GAMES):
        mine, theirs = thrown < chances.gather(2, situation.expand(2, -1, -1))
        record.append((situation, mine, theirs))
        situation = 1 + 2 * (~mine).long() + (~theirs).long()
    situations, mine, theirs = (torch.stack(part, dim=2) for part in zip(*record, strict=True))
    return situations, mine, theirs


def sampled_value(own: Tensor, other: Tensor) -> Tensor:
    """Zero, with the derivatives of the value of any order, estimated from games (loaded DiCE)."""
    with torch.no_grad():
        situations, mine, theirs = played(own, other)
        weights = DISCOUNT ** torch.arange(ROUNDS)
        years = weights * YEARS[2 * (~mine).long() + (~theirs).long()]
        to_come = years.flip(2).cumsum(2).flip(2) / weights
        flat, zeros = situations.flatten(1), torch.zeros(len(own), 5)
        count = zeros.scatter_add(1, flat, torch.ones(flat.shape))
        usual = zeros.scatter_add(1, flat, to_come.flatten(1)) / count.clamp(min=1)
        better = weights * (to_come.flatten(1) - usual.gather(1, flat)).view(to_come.shape)
    log_prob = torch.zeros(())
    for logits, cooperated in ((own, mine), (other[:, SEEN], theirs)):
        now = logits.gather(1, flat).view(to_come.shape)
        log_prob = log_prob + logsigmoid(torch.where(cooperated, now, -now))
    after = log_prob.cumsum(2)
    value = (dice(after) - dice(after - log_prob)) * better
    return (1 - DISCOUNT) * value.sum(2).mean(1)


def step(
    own: Tensor, other: Tensor, value: Callable[..., Tensor], look_ahead: int, rates: list[float]
) -> Tensor:
    """The step of each pair's first agent, through the steps that the second would take."""
    own, learning = own.clone().requires_grad_(), sgd(rates[1], maximize=True)
    against = unroll(lambda q: value(q, own).sum(), learning, other, steps=look_ahead).params
    (g,) = torch.autograd.grad(value(own, against).sum(), own)
    return rates[0] * g


WAYS = {  # what agents look at, how many steps ahead, and the rates of both
    "naive": (exact_value, 0, [20.0, 20.0]),
    "LOLA": (exact_value, 1, [20.0, 20.0]),
    "LOLA-DiCE": (sampled_value, 2, [10.0, 10.0]),
}


def learn(way: str, steps: int) -> tuple[Tensor, Tensor]:
    """Let both agents of all pairs learn: mean years of (steps, pairs), and policies at last."""
    torch.manual_seed(0)
    (first, second), course = torch.randn(2, PAIRS, 5), []
    for _ in tqdm(range(steps), desc=way):
        moves = step(first, second, *WAYS[way]), step(second, first, *WAYS[way])
        first, second = first + moves[0], second + moves[1]
        course.append((exact_value(first, second) + exact_value(second, first)) / 2)
    return torch.stack(course), torch.cat([first, second]).sigmoid()


def draw(results: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Draw the years while learning, and the policies that came out."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, (name, (course, policies)) in enumerate(results.items()):
        (line,) = left.plot(course.mean(1), label=name)
        left.plot(course, color=line.get_color(), alpha=0.2, linewidth=0.7)
        at = [x + 0.27 * (place - 1) for x in range(5)]
        right.bar(at, policies.mean(0).tolist(), 0.25, label=name, alpha=0.6)
        right.plot(at, policies.T, ".", color="black", markersize=3)
    left.set(xlabel="step", ylabel="years a round", title="mean of both agents, and of each pair")
    names = ["first\nround", "CC", "CD", "DC", "DD"]
    right.set_xticks(range(5), names)
    right.set(
        ylabel="probability",
        xlabel="after (own, other)",
        title="cooperates (tit-for-tat: 1 1 0 1 0)",
    )
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.08))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Let all kinds of agents learn, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small
    results = {way: learn(way, 20 if options.quick else 150) for way in WAYS}
    for name, (course, policies) in results.items():
        print(f"{name}: {course[-1].mean():.2f} years a round; cooperates at first", end=" ")
        print("and after CC, CD, DC, DD:", " ".join(f"{p:.2f}" for p in policies.mean(0)))
    draw(results, options.results / "lola_prisoners_dilemma.png")


if __name__ == "__main__":
    main()
