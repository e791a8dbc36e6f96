"""Two agents in two processes, each of which learns through the other's next step: LOLA.

The iterated prisoner's dilemma with exact values. Each agent has a process and keeps its policy
there. To improve, it asks the other for the policy that it would have after a naive step, which is
a differentiable function of the asker's own: the gradient runs through the other's process, and
through the gradient step made there. Beside it the same without looking through the other.

Shows: `launch` with roles, `local_state`, `remote_sync_call` to a role, second derivatives through
another process.

Expected, in half a minute: naive agents learn to defect and lose 2.0 years a round; agents that
look through one another learn to cooperate, as long as the other does, and lose 1.0.

Source: Foerster et al., *Learning with opponent-learning awareness*, AAMAS 2018, section 4 and
table 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from diffopt_dist import get_role, launch, local_state, remote_async_call, remote_sync_call
from torch import Tensor
from tqdm import tqdm

mpl.use("Agg")
from matplotlib import pyplot as plt

DISCOUNT, RATE, LOOK_AHEAD, STEPS = 0.96, 20.0, 20.0, 150
YEARS = (-1.0, -3.0, 0.0, -2.0)  # of (own, other) in CC, CD, DC, DD
OTHER = {"first": "second", "second": "first"}


def value(own: Tensor, other: Tensor) -> Tensor:
    """Mean years a round of an agent, from the logits of both to cooperate.

    Logits are those of the first round, and after (own, other) were CC, CD, DC, DD.
    """
    p, q = torch.sigmoid(own), torch.sigmoid(other)[[0, 1, 3, 2, 4]]
    rounds = torch.stack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)], dim=1)
    start, transitions = rounds[0], rounds[1:]
    visits = torch.linalg.solve(torch.eye(4, dtype=own.dtype) - DISCOUNT * transitions.T, start)
    return (1 - DISCOUNT) * visits @ torch.tensor(YEARS, dtype=own.dtype)


def begin(seed: int) -> None:
    """Give the agent of this process a policy."""
    generator = torch.Generator().manual_seed(seed)
    local_state()["policy"] = torch.randn(5, generator=generator, dtype=torch.float64)


def answer(other: Tensor, look_ahead: float) -> Tensor:
    """The policy of this agent after a naive step, as a function of the other's."""
    policy = local_state()["policy"].clone().requires_grad_()
    (g,) = torch.autograd.grad(value(policy, other), policy, create_graph=True)
    return policy + look_ahead * g


def gradient(look_ahead: float) -> tuple[Tensor, float]:
    """The gradient of this agent's years through the other's step, and the years now."""
    opponent = OTHER[str(get_role())]
    policy = local_state()["policy"].clone().requires_grad_()
    soon = remote_sync_call(answer, (policy, look_ahead), to=opponent)
    (found,) = torch.autograd.grad(value(policy, soon), policy)
    now = remote_sync_call(answer, (policy.detach(), 0.0), to=opponent)
    return found, value(policy, now).item()


def move(step: Tensor) -> Tensor:
    """Change the policy of this process's agent, and return it."""
    local_state()["policy"] += step
    return torch.sigmoid(local_state()["policy"])


def play(steps: int, look_ahead: float, name: str) -> tuple[list[tuple[float, ...]], list[Any]]:
    """Let both agents learn at the same time; return their years, and what they play."""
    for seed, role in enumerate(OTHER):
        remote_sync_call(begin, (seed,), to=role)
    years, policies = [], []
    for _ in tqdm(range(steps), desc=name):
        started = [remote_async_call(gradient, (look_ahead,), to=role) for role in OTHER]
        found = [call.wait() for call in started]
        years.append(tuple(now for _, now in found))
        policies = [
            remote_sync_call(move, (RATE * g,), to=role).tolist()
            for role, (g, _) in zip(OTHER, found, strict=True)
        ]
    return years, policies


def main() -> None:
    """Let naive and looking agents learn, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="60 steps: to see that it runs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    steps = 60 if options.quick else STEPS

    def control() -> Any:
        if get_role() is not None:
            return None  # an agent answers calls
        ways = {"naive": 0.0, "looking through the other": LOOK_AHEAD}
        return {name: play(steps, look_ahead, name) for name, look_ahead in ways.items()}

    results = launch(control, 3, roles={"first": [1], "second": [2]})[0]
    figure, axes = plt.subplots()
    for name, (years, policies) in results.items():
        print(f"{name}: {years[-1][0]:.2f} and {years[-1][1]:.2f} years a round")
        print("  cooperates at first, after CC, CD, DC, DD:", [f"{p:.2f}" for p in policies[0]])
        axes.plot([sum(pair) / 2 for pair in years], label=name)
    axes.set(xlabel="step", ylabel="years a round, mean of both agents")
    axes.legend()
    options.results.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.results / "lola_distributed.png", dpi=120)


if __name__ == "__main__":
    main()
