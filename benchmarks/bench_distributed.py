"""Meta-gradients over processes: speed-up, overhead a task, a model of larger worlds, TorchOpt.

The task is a MAML task (a perceptron, steps of SGD, second derivatives) of at least 50 ms, with one
thread in each process. The two workers are the caller's process and another, on as many cores. The
overhead is that of tasks that do next to nothing, beside a bare `rpc_async` of the same tensor in
the same world. From it, and from what the caller itself computes for each task, follows a model:

    time of a step = max(tasks / workers * (task + round trips), tasks * caller's share)

so that the caller is saturated at (task + round trips) / (caller's share) workers. TorchOpt's
runtime does the same meta-step in a world of its own, by torchrun.

    nox -s bench, or python benchmarks/bench_distributed.py [--quick] [--json FILE]

A world of 20 processes is started here and not in the tests, because it takes 50 s of CPU.
"""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffopt_dist import Shard, get_rank, get_world_size, launch, parallelize, replicate
from diffopt_dist._pack import pack
from diffopt_dist._request import Policy, Request
from diffopt_dist._worker import run
from harness import arguments, report
from torch import Tensor
from torch.distributed import rpc
from torch.distributed.rpc import internal

TASKS, STEPS, WORLDS = 8, 6, (8, 64, 512)
TORCHOPT = "PEER_RESULT"
echo = operator.pos  # a task that does nothing, which pickle can send


def params_and_tasks() -> tuple[list[Tensor], Tensor]:
    """Weights of a perceptron that require grad, and images of all tasks."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(256, 256), (256, 256), (256, 64)]
    params = [torch.randn(*size, generator=generator) / 16 for size in sizes]
    return [p.requires_grad_() for p in params], torch.randn(TASKS, 100, 256, generator=generator)


def network(params: list[Tensor], x: Tensor) -> Tensor:
    """The network's outputs."""
    return torch.tanh(torch.tanh(x @ params[0]) @ params[1]) @ params[2]


def meta_loss(params: list[Tensor], tasks: Tensor) -> Tensor:
    """Mean over some tasks of the loss after inner steps."""
    losses = []
    for x in tasks:
        fast = list(params)
        for _ in range(STEPS):
            loss = network(fast, x).square().mean()
            gradients = torch.autograd.grad(loss, fast, create_graph=True)
            fast = [p - 0.1 * g for p, g in zip(fast, gradients, strict=True)]
        losses.append((network(fast, x) - 1).square().mean())
    return torch.stack(losses).mean()


def step(loss: Callable[..., Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """A meta-step, which returns the meta-gradient."""
    params, tasks = params_and_tasks()
    return lambda: torch.autograd.grad(loss(params, tasks), params)


def seconds(call: Callable[[], Any], rounds: int, clock: Callable[[], float]) -> float:
    """The median time of a call, after a first."""
    call()
    taken = []
    for _ in range(rounds):
        start = clock()
        call()
        taken.append(clock() - start)
    return median(taken)


def bytes_of(function: Any, args: tuple[Any, ...]) -> int:
    """How long a message to a worker is, tensors included."""
    data, tensors = internal._internal_rpc_pickler.serialize(internal.PythonUDF(function, args, {}))
    return len(data) + sum(tensor.nbytes for tensor in tensors)


def message_bytes(x: Tensor) -> dict[str, int]:
    """Bytes of a call of `echo`, ours and bare."""
    function, rest = pack(echo)[1], pack(((x,), {}))[1]
    request = Request("echo", run, (function, 0, rest, 0), [x], 1, [0], Policy())
    ours = bytes_of(run, ([], [request._step()]))
    return {"ours": ours, "rpc_async": bytes_of(echo, (x,))}


def measure(rounds: int) -> dict[str, Any] | None:
    """In a world of two: the speed-up, and the overhead."""
    if get_rank() != 0:
        return None
    here = step(meta_loss)
    spread = lambda workers: step(
        lambda params, tasks: parallelize(meta_loss, workers=workers)(replicate(params), tasks)
    )
    wall = time.perf_counter
    torch.testing.assert_close(spread([0, 1])(), here(), rtol=1e-4, atol=1e-6)
    names = {"sequential": here, "one worker": spread([1]), "two workers": spread([0, 1])}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, call in names.items():
            taken[name].append(seconds(call, 1, wall))
    found: dict[str, Any] = {name: median(times) for name, times in taken.items()}

    x, count = torch.ones(3), 50
    worker = rpc.get_worker_info().name.replace("0", "1")
    one_by_one = parallelize(
        echo,
        partitioner=lambda args, kwargs, parts: [Shard(args, {}, 1)] * count,
        reducer=lambda results, sizes: None,
        workers=[1],
    )
    bare = lambda: [rpc.rpc_async(worker, echo, (x,)).wait() for _ in range(count)]
    contenders = {"ours": lambda: one_by_one(x), "rpc_async": bare}
    for name, call in contenders.items():
        found[f"round trip, {name} (us)"] = seconds(call, rounds, wall) / count * 1e6
        found[f"caller's share, {name} (us)"] = (
            seconds(call, rounds, time.process_time) / count * 1e6
        )
    params, tasks = params_and_tasks()
    both = parallelize(
        lambda params, x: sum(p.sum() for p in params),
        partitioner=lambda args, kwargs, parts: [Shard(args, {}, 1)] * count,
        workers=[1],
    )
    pass_both = lambda: torch.autograd.grad(both(params, tasks[0]), params)
    found["caller's share, task and gradient (us)"] = (
        seconds(pass_both, rounds, time.process_time) / count * 1e6
    )
    found["bytes"] = message_bytes(x)
    return found


def model(found: dict[str, Any]) -> dict[str, Any]:
    """Predicted speed-ups over one process, for tasks as measured and for tasks of a second."""
    trip = 2 * found["round trip, ours (us)"] / 1e6
    share = found["caller's share, task and gradient (us)"] / 1e6
    results = {}
    for name, task in {"as measured": found["sequential"] / TASKS, "of 1 s": 1.0}.items():
        times = {workers: max((task + trip) / workers, share) for workers in WORLDS}
        results[f"tasks {name}"] = {
            **{f"{w} workers": task / times[w] for w in WORLDS},
            "caller saturated at workers": (task + trip) / share,
        }
    return results


def torchopt_step(rounds: int) -> None:
    """In a world of torchrun: the same meta-step by TorchOpt's runtime."""
    import torchopt.distributed as todist  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    here = step(meta_loss)  # before the function's name is that of TorchOpt's

    def part(params: list[Tensor], tasks: Tensor) -> Any:
        shares = zip(range(get_size()), tasks.tensor_split(get_size()), strict=True)
        return [(rank, (params, share), {}) for rank, share in shares]

    def get_size() -> int:
        return int(os.environ["WORLD_SIZE"])

    # In every process, because it gives the function a name by which the others know it.
    spread = todist.parallelize(partitioner=part, reducer=todist.mean_reducer)(meta_loss)

    @todist.auto_init_rpc()
    @todist.rank_zero_only
    def main() -> None:
        params, tasks = params_and_tasks()

        def call() -> Any:
            with todist.autograd.context() as context:
                return todist.autograd.grad(context, spread(params, tasks), params)

        torch.testing.assert_close(call(), here(), rtol=1e-4, atol=1e-6)
        taken = seconds(call, rounds, time.perf_counter)
        Path(os.environ[TORCHOPT]).write_text(json.dumps(taken))

    main()


def torchopt(rounds: int) -> float | str:
    """Seconds of TorchOpt's meta-step with two workers, or what went wrong."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "29587", __file__, "--torchopt", *["--quick"] * (rounds < 10)]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "seconds"
        environment = {**os.environ, TORCHOPT: str(result), "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
        except subprocess.TimeoutExpired:
            return "no result after 300 s"
        if not result.exists():
            return done.stderr.decode()[-2000:]
        return json.loads(result.read_text())


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "", torchopt="be a process of TorchOpt's world, by torchrun")
    rounds = 3 if options.quick else 15
    if options.torchopt:
        torchopt_step(rounds)
        return
    found = launch(measure, 2, (rounds,), timeout=600.0)[0]
    found["two workers, TorchOpt"] = torchopt(rounds)
    found["predicted speed-up"] = model(found)
    if not options.quick:
        start = time.perf_counter()
        assert launch(get_world_size, 20, timeout=600.0) == [20] * 20
        found["a world of 20 processes, from start to end (s)"] = time.perf_counter() - start
    sequential = found["sequential"]
    print(
        f"a task: {sequential / TASKS * 1e3:.0f} ms, a step of {TASKS}: {sequential * 1e3:.0f} ms"
    )
    for name in ("one worker", "two workers", "two workers, TorchOpt"):
        taken = found[name]
        print(name, taken if isinstance(taken, str) else f"{sequential / taken:.2f}x")
    for name, value in found.items():
        if name.endswith("(us)"):
            print(f"{name[:-5]}: {value:.0f} us")
    print("bytes to a worker:", found["bytes"])
    for name, values in found["predicted speed-up"].items():
        print(name, {where: round(value, 1) for where, value in values.items()})
    report(
        {"distributed": found}, ["diffopt-dist", "torch", "torchopt"], options.json, unit="seconds"
    )


if __name__ == "__main__":
    main()
