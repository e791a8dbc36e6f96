"""L-BFGS on binary logistic regression: 10,000 examples, 200 features, 30 iterations.

The claim: the iterations are as good as the best, none evaluates the function more often than it
must, and what is done between evaluations costs next to nothing; the floor is the evaluations
alone. All run in float64 on one core with ten pairs of memory, from zero. Beside ours stand
`torch.optim.LBFGS` (strong Wolfe), SciPy's L-BFGS-B and JAXopt under `jax.jit`. The gradient error
is the Euclidean norm of the gradient, recomputed for all by the same function; what is timed is 30
iterations, and as many as each needs to bring that to 1e-9.

    nox -s bench, or python benchmarks/bench_lbfgs.py [--quick] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from diffopt_implicit import LBFGS, BacktrackingLineSearch, HagerZhangLineSearch, ZoomLineSearch
from harness import WALL, arguments, fastest, one_core, report, row
from sklearn.datasets import make_classification
from torch import Tensor
from torch.nn.functional import softplus

ITERATIONS, MEMORY, GOAL = 30, 10, 1e-9
Minimize = Callable[[int], "Ended"]


class Ended(NamedTuple):
    """Where a run of so many iterations ended."""

    x: Tensor
    iterations: int
    evaluations: int


X, LABELS = make_classification(10_000, 200, n_informative=3, random_state=0)
FEATURES, TARGETS = torch.tensor(X), torch.tensor(LABELS, dtype=torch.float64)


def loss(w: Tensor) -> Tensor:
    """The mean negative log-likelihood."""
    scores = FEATURES @ w
    return (softplus(scores) - TARGETS * scores).mean()


def gradient_error(w: Tensor) -> float:
    """The norm of the gradient."""
    return float(torch.func.grad(loss)(w).norm())


def start() -> Tensor:
    """Zero."""
    return torch.zeros(FEATURES.shape[1], dtype=torch.float64)


def ours(linesearch: Any) -> Minimize:
    """This repository's."""
    solver = LBFGS(loss, linesearch=linesearch, history_size=MEMORY, tol=0.0, on_failure="ignore")

    def run(iterations: int) -> Ended:
        x, state = replace(solver, maxiter=iterations).run(start())
        return Ended(x, int(state.iter_num), int(state.num_fun_eval))

    return run


def by_torch(iterations: int) -> Ended:
    """`torch.optim.LBFGS`."""
    x, calls = start().requires_grad_(), 0
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=iterations,
        max_eval=100 * iterations,
        history_size=MEMORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value  # type: ignore[return-value]

    optimizer.step(closure)
    return Ended(x.detach(), optimizer.state[x]["n_iter"], calls)


def by_scipy() -> Minimize:
    """SciPy's L-BFGS-B, with the same function by autograd."""
    from scipy.optimize import minimize

    def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(w, requires_grad=True)
        value = loss(x)
        value.backward()
        return value.item(), x.grad.numpy()  # type: ignore[union-attr]

    def run(iterations: int) -> Ended:
        options = {"maxiter": iterations, "maxcor": MEMORY, "ftol": 0.0, "gtol": 0.0}
        found = minimize(
            value_and_gradient, start().numpy(), jac=True, method="L-BFGS-B", options=options
        )
        return Ended(torch.tensor(found.x), found.nit, found.nfev)

    return run


def by_jaxopt(linesearch: str) -> Minimize:
    """JAXopt's, compiled whole."""
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import jaxopt  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_enable_x64", True)

    def jax_loss(w: Any, x: Any, y: Any) -> Any:
        scores = x @ w
        return (jax.nn.softplus(scores) - y * scores).mean()

    solver = jaxopt.LBFGS(jax_loss, history_size=MEMORY, tol=0.0, linesearch=linesearch)

    @jax.jit
    def iterate(iterations: Any, w: Any, *data: Any) -> Any:
        # The loop of `solver.run`, which would be compiled anew for each number of iterations.
        begun = jaxopt.OptStep(w, solver.init_state(w, *data))
        return jax.lax.fori_loop(0, iterations, lambda _, step: solver.update(*step, *data), begun)

    # All as arguments: constants would be folded at compilation.
    given = (
        jnp.zeros(FEATURES.shape[1]),
        jnp.asarray(FEATURES.numpy()),
        jnp.asarray(TARGETS.numpy()),
    )

    def run(iterations: int) -> Ended:
        x, state = jax.block_until_ready(iterate(iterations, *given))
        return Ended(torch.tensor(np.array(x)), int(state.iter_num), int(state.num_fun_eval))

    return run


def evaluations_alone(iterations: int) -> Ended:
    """The floor: as many values and gradients as iterations, and one, and nothing between."""
    x = start().requires_grad_()
    for _ in range(iterations + 1):
        torch.autograd.grad(loss(x), x)
    return Ended(x.detach(), 0, iterations + 1)


def contenders() -> dict[str, Minimize]:
    """All that can be run here; what cannot says why."""
    found: dict[str, Minimize] = {
        "zoom": ours(ZoomLineSearch()),
        "backtracking": ours(BacktrackingLineSearch()),
        "Hager-Zhang": ours(HagerZhangLineSearch()),
        "torch.optim": by_torch,
    }
    peers = {
        "SciPy": by_scipy,
        "JAXopt, zoom": lambda: by_jaxopt("zoom"),
        "JAXopt, backtracking": lambda: by_jaxopt("backtracking"),
    }
    for peer, make in peers.items():
        try:
            found[peer] = make()
            found[peer](1)
        except Exception as error:  # noqa: PERF203 - that a peer fails is a result
            found.pop(peer, None)
            print(f"{peer}: {type(error).__name__}: {error}")
    return found


def needed(run: Minimize) -> int | None:
    """How many iterations bring the gradient to the goal; None if 50 do not."""
    low, high = 0, 50
    if gradient_error(run(high).x) > GOAL:
        return None
    while high - low > 1:  # the error need not fall in each step, but nearly does
        middle = (low + high) // 2
        low, high = (low, middle) if gradient_error(run(middle).x) <= GOAL else (middle, high)
    return high


def main() -> None:
    """Compare, measure and print."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    one_core()
    rounds, seconds = (1, 0.01) if options.quick else (10, 0.5)
    results: dict[str, Any] = {}
    runs: dict[str, Callable[[], Any]] = {}
    shorter: dict[str, Callable[[], Any]] = {}
    for name, run in contenders().items():
        errors = [gradient_error(run(count).x) for count in (10, 20, 30)]
        ended, least = run(ITERATIONS), needed(run)
        results[name] = {
            "gradient error at 10, 20, 30": errors,
            "iterations": ended.iterations,
            "evaluations": ended.evaluations,
            f"iterations to {GOAL:.0e}": least,
        }
        shown = " ".join(f"{error:.1e}" for error in errors)
        print(
            f"{name:22} error at 10, 20, 30: {shown}; {ended.evaluations} evaluations in "
            f"{ended.iterations} iterations; {least} to {GOAL:.0e}"
        )
        runs[name] = lambda run=run: run(ITERATIONS)
        if least is not None:
            shorter[name] = lambda run=run, least=least: run(least)
    runs["evaluations alone"] = lambda: evaluations_alone(ITERATIONS)
    times = fastest(runs, rounds=rounds, seconds=seconds, clock=WALL)
    print(f"\n{ITERATIONS} iterations:    {row(times, 'zoom')}")
    to_goal = fastest(shorter, rounds=rounds, seconds=seconds, clock=WALL)
    print(f"to {GOAL:.0e}:      {row(to_goal, 'zoom')}")
    results["times"] = {f"{ITERATIONS} iterations": times, f"to {GOAL:.0e}": to_goal}
    packages = ["torch", "diffopt-implicit", "scipy", "jax", "jaxopt"]
    report(results, packages, options.json)


if __name__ == "__main__":
    main()
