"""The hypergradient of a network of a million parameters, by ten steps of CG or of a series.

The claim: an adjoint iteration of ours costs little more than its product with the Hessian, whose
floor is six matrix products a layer (two in the first), and never waits for the device. The row
"bare matrix products" is that floor. All run on one core. What an iteration takes is the difference
between ten and twenty. The network is 784-1024-256-10, the batch 64 images; the inner loss is
cross-entropy, with the squared distance to where the training ended, as in implicit MAML, and a
penalty for each weight tensor, whose logarithm is the hyperparameter. Beside ours stand Betty (its
`cg` and `neumann`, with its correct scaling), TorchOpt (`custom_root` with `solve_cg`, and
`solve_inv` by a series) and JAXopt under `jax.jit` (`custom_root` with `solve_cg`; it has no
series). Each result is compared with a plain loop in float64 before anything is timed.

    nox -s bench, or python benchmarks/bench_hypergradient.py [--quick] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from diffopt_implicit import (
    CG,
    Neumann,
    compile_hypergradient,
    custom_root,
    hypergradient,
    solve_cg,
)
from harness import WALL, arguments, fastest, one_core, report, row
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

SIZES, BATCH, STEP, DESCENT = (784, 1024, 256, 10), 64, 0.1, 100
COUNT, MORE = 10, 20  # iterations
FLOOR = "bare matrix products"
Params = list[Tensor]
Contender = Callable[[], list[Tensor]]


class Problem:
    """The data, the parameters near a minimum, and the two losses."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.x, self.y = draw(2 * BATCH, SIZES[0]), torch.arange(2 * BATCH) % SIZES[-1]
        params = []
        for n, m in pairwise(SIZES):
            params += [draw(m, n) * (1 / n) ** 0.5, torch.zeros(m, dtype=torch.float64)]
        hparams = [torch.tensor(-3.0, dtype=torch.float64) for _ in params]
        for _ in range(DESCENT):
            self.anchor = params
            slopes = torch.func.grad(self.inner)(params, hparams)
            params = [p - STEP * g for p, g in zip(params, slopes, strict=True)]
        self.x = self.x.to(dtype)
        self.params, self.hparams = ([t.to(dtype) for t in part] for part in (params, hparams))
        self.anchor = [p.clone() for p in self.params]

    def loss(self, params: Params, which: slice) -> Tensor:
        """Cross-entropy on some of the images."""
        h = self.x[which]
        for i in range(0, len(params), 2):
            h = linear(h, params[i], params[i + 1])
            h = torch.tanh(h) if i + 2 < len(params) else h
        return cross_entropy(h, self.y[which])

    def inner(self, params: Params, hparams: Params) -> Tensor:
        """The penalized loss on the first half."""
        pairs = zip(params, hparams, strict=True)
        penalty = sum(0.5 * lam.exp() * p.square().sum() for p, lam in pairs)
        near = zip(params, self.anchor, strict=True)
        distance = sum(0.5 * (p - q).square().sum() for p, q in near)
        return self.loss(params, slice(BATCH)) + penalty + distance

    def outer(self, params: Params, hparams: Params) -> Tensor:
        """The loss on the second half."""
        return self.loss(params, slice(BATCH, None))


def bare_products() -> Callable[[], None]:
    """The matrix products of one product with the Hessian, and nothing else, into kept memory.

    Six a layer: the tangents forward and the two parts of each slope backward, with the weights
    and with those of the vector. The first layer's input has no tangent, which leaves it two.
    """
    draw, sizes = torch.randn, tuple(pairwise(SIZES))
    weights, vectors, slopes = ([draw(m, n) for n, m in sizes] for _ in range(3))
    inputs, moved = ([draw(BATCH, n) for n, _ in sizes] for _ in range(2))
    deltas, turned = ([draw(BATCH, m) for _, m in sizes] for _ in range(2))
    last = len(sizes) - 1

    def run() -> None:
        for i in range(last + 1):
            out = torch.mm(inputs[i], vectors[i].T, out=moved[i + 1] if i < last else turned[i])
            if i > 0:
                torch.addmm(out, moved[i], weights[i].T, out=out)
        for i in range(last, -1, -1):
            torch.mm(turned[i].T, inputs[i], out=slopes[i])
            if i > 0:
                torch.addmm(slopes[i], deltas[i].T, moved[i], out=slopes[i])
                torch.mm(turned[i], weights[i], out=turned[i - 1])
                torch.addmm(turned[i - 1], deltas[i], vectors[i], out=turned[i - 1])

    return run


def ours(problem: Problem, method: Any) -> Contender:
    """`hypergradient`."""

    def run() -> list[Tensor]:
        return hypergradient(problem.inner, problem.outer, problem.params, problem.hparams, method)

    return run


def ours_compiled(problem: Problem, method: Any) -> Contender:
    """`compile_hypergradient`."""
    compiled = compile_hypergradient(problem.inner, problem.outer, method)
    return lambda: compiled(problem.params, problem.hparams)


def ours_decorated(problem: Problem, count: int) -> Contender:
    """`custom_root` with `solve_cg`."""

    def run() -> list[Tensor]:
        solve = partial(solve_cg, tol=0.0, maxiter=count, on_failure="ignore")
        solver = custom_root(torch.func.grad(problem.inner), solve=solve)(
            lambda init, hparams: problem.params
        )
        leaves = [h.clone().requires_grad_() for h in problem.hparams]
        return list(torch.autograd.grad(problem.outer(solver(None, leaves), leaves), leaves))

    return run


def by_betty(problem: Problem, name: str, count: int) -> Contender:
    """Betty's method for one lower problem."""
    from betty import hypergradient as betty  # pyright: ignore[reportMissingImports]

    method: Any = getattr(betty, name)
    method = method if callable(method) else getattr(method, name)

    def run() -> list[Tensor]:
        params = [p.clone().requires_grad_() for p in problem.params]
        leaves = [h.clone().requires_grad_() for h in problem.hparams]
        vector = torch.autograd.grad(problem.outer(params, leaves), params)
        config = SimpleNamespace(
            cg_iterations=count, cg_alpha=1.0, neumann_iterations=count, neumann_alpha=STEP
        )
        lower = SimpleNamespace(
            paths=[],
            config=config,
            cur_batch=None,
            training_step_exec=lambda _: problem.inner(params, leaves),
            trainable_parameters=lambda: params,
            parameters=lambda: params,
        )
        upper = SimpleNamespace(trainable_parameters=lambda: leaves)
        return method(vector, lower, upper, False)

    return run


def by_torchopt(problem: Problem, name: str, count: int) -> Contender:
    """TorchOpt's `custom_root`."""
    from torchopt import linear_solve  # pyright: ignore[reportMissingImports]
    from torchopt.diff.implicit import custom_root as torchopt_root  # pyright: ignore[reportMissingImports]

    def run() -> list[Tensor]:
        solve = (
            linear_solve.solve_cg(maxiter=count, rtol=0.0, atol=0.0)
            if name == "cg"
            else linear_solve.solve_inv(ns=True, maxiter=count, alpha=STEP)
        )
        numbers = tuple(range(1, 1 + len(problem.hparams)))

        def condition(params: Any, *hparams: Tensor) -> Any:
            return tuple(torch.func.grad(problem.inner)(list(params), list(hparams)))

        decorate: Any = torchopt_root
        solver = decorate(condition, argnums=numbers, solve=solve)(
            lambda init, *hparams: tuple(problem.params)
        )
        leaves = [h.clone().requires_grad_() for h in problem.hparams]
        start = tuple(torch.zeros_like(p) for p in problem.params)
        return list(torch.autograd.grad(problem.outer(solver(start, *leaves), leaves), leaves))

    return run


def by_jaxopt(problem: Problem, count: int) -> Contender:
    """JAXopt's `custom_root` with `solve_cg`, under `jax.jit`."""
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    from jaxopt.implicit_diff import custom_root as decorate  # pyright: ignore[reportMissingImports]
    from jaxopt.linear_solve import solve_cg as jax_cg  # pyright: ignore[reportMissingImports]

    def loss(params: Any, data: Any, which: slice) -> Any:
        h = data[0][which]
        for i in range(0, len(params), 2):
            h = h @ params[i].T + params[i + 1]
            h = jnp.tanh(h) if i + 2 < len(params) else h
        labels = data[1][which][:, None]
        return -jnp.take_along_axis(jax.nn.log_softmax(h), labels, axis=1).mean()

    def inner(params: Any, hparams: Any, data: Any) -> Any:
        pairs = zip(params, hparams, strict=True)
        penalty = sum(0.5 * jnp.exp(lam) * (p**2).sum() for p, lam in pairs)
        distance = sum(0.5 * ((p - q) ** 2).sum() for p, q in zip(params, data[2], strict=True))
        return loss(params, data, slice(BATCH)) + penalty + distance

    def compiled() -> Any:
        solve = partial(jax_cg, maxiter=count, tol=0.0)
        solver = decorate(jax.grad(inner), solve=solve)(lambda init, hparams, data: init)

        def value(hparams: Any, params: Any, data: Any) -> Any:
            return loss(solver(params, hparams, data), data, slice(BATCH, None))

        return jax.jit(jax.grad(value))

    # All as arguments: constants would be folded at compilation.
    tensors = (problem.hparams, problem.params, (problem.x, problem.y, problem.anchor))
    given = jax.tree.map(lambda t: jnp.asarray(t.numpy()), tensors)
    gradient = compiled()

    def run() -> list[Tensor]:
        found = jax.block_until_ready(gradient(*given))
        return [torch.tensor(float(g)) for g in found]

    return run


def truth(problem: Problem, name: str) -> list[Tensor]:
    """The same iteration as a plain loop in float64, on one vector."""
    params = [p.requires_grad_() for p in problem.params]
    leaves = [h.requires_grad_() for h in problem.hparams]
    slopes = torch.autograd.grad(problem.inner(params, leaves), params, create_graph=True)
    flat = torch.cat([g.flatten() for g in slopes])
    shapes = [p.shape for p in params]

    def product(v: Tensor) -> Tensor:
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(flat, params, v, retain_graph=True)]
        )

    v = torch.cat([g.flatten() for g in torch.autograd.grad(problem.outer(params, leaves), params)])
    assert sum(map(torch.Size.numel, shapes)) == len(v)
    u, r = torch.zeros_like(v), v
    p = r
    for _ in range(COUNT):
        if name == "series":
            u, r = u + STEP * r, r - STEP * product(r)
        else:
            hp = product(p)
            alpha = (r @ r) / (p @ hp)
            after = r - alpha * hp
            u, p = u + alpha * p, after + (after @ after) / (r @ r) * p
            r = after
    u = u + STEP * r if name == "series" else u
    return [-g for g in torch.autograd.grad(flat, leaves, u)]


def contenders(problem: Problem, name: str, count: int) -> dict[str, Contender]:
    """All that can be run here; what cannot says why."""
    method = CG(count) if name == "cg" else Neumann(count, STEP)
    found = {
        "compiled": ours_compiled(problem, method),
        "hypergradient": ours(problem, method),
    }
    peers = {
        "Betty": lambda: by_betty(problem, "cg" if name == "cg" else "neumann", count),
        "TorchOpt": lambda: by_torchopt(problem, name, count),
    }
    if name == "cg":
        found["custom_root"] = ours_decorated(problem, count)
        peers["JAXopt, jit"] = lambda: by_jaxopt(problem, count)
    for peer, make in peers.items():
        try:
            found[peer] = make()
            found[peer]()
        except Exception as error:  # noqa: PERF203 - that a peer fails is a result
            found.pop(peer, None)
            print(f"{peer}: {type(error).__name__}: {error}")
    return found


def main() -> None:
    """Compare, measure and print."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    one_core()
    single, double = Problem(torch.float32), Problem(torch.float64)
    rounds, seconds = (1, 0.01) if options.quick else (10, 0.5)
    results = {}
    for name in ("cg", "series"):
        exact = torch.stack(truth(double, name)).detach()
        print(f"\n{name}, {COUNT} iterations, {sum(p.numel() for p in single.params):,} parameters")
        runs = {}
        for contender, run in contenders(single, name, COUNT).items():
            wrong = (torch.stack(run()).double() - exact).norm() / exact.norm()
            verdict = "" if wrong < 1e-3 else " (differs)"
            print(f"  {contender:15} relative error of the hypergradient {wrong:.1e}{verdict}")
            runs[contender + verdict] = run
        # Together, so that a change of the machine's speed meets all of them.
        more = contenders(single, name, MORE)
        longer = {f"{key}, {MORE}": more[key.removesuffix(" (differs)")] for key in runs}
        floor = {FLOOR: bare_products()}
        times = fastest(runs | longer | floor, rounds=rounds, seconds=seconds, clock=WALL)
        whole = {key: times[key] for key in runs}
        each = {key: (times[f"{key}, {MORE}"] - times[key]) / (MORE - COUNT) for key in runs}
        print(f"  whole:              {row(whole, 'compiled')}")
        print(f"  for each iteration: {row(each | {FLOOR: times[FLOOR]}, 'compiled')}")
        results[name] = {"whole": whole, "each iteration": each | {FLOOR: times[FLOOR]}}
    packages = ["diffopt-implicit", "torch", "betty-ml", "torchopt", "jaxopt", "jax"]
    report(results, packages, options.json)


if __name__ == "__main__":
    main()
