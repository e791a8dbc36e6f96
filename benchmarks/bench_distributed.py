"""Meta-gradients over processes: speed-up, overhead a task, a model of larger worlds, TorchOpt.

The task is a MAML task (a perceptron, steps of SGD, second derivatives), with one thread in each
process: as many inner steps as make 50 ms, and a short one beside it. The two workers are the
caller's process and another, on as many cores. What the machine itself allows is the row of two
processes that do half of the tasks each and send nothing but a word to begin. The overhead is
that of tasks that do next to nothing, beside a bare `rpc_async` of the same tensor in the same
world. From it, and from what the caller itself computes for each task, follows a model:

    time of a step = max(tasks / workers * (task + round trips), tasks * caller's share)

so that the caller is saturated at (task + round trips) / (caller's share) workers. TorchOpt's
runtime does the same meta-steps in worlds of its own, by torchrun, where its speed-up is that over
one process there; it varies much from world to world, so that the best of ten is taken. The bytes
are those of all messages to the two workers in one forward pass of single tasks: the weights are
sent once to each worker, and with every task where each has weights of its own.

    nox -s bench, or python benchmarks/bench_distributed.py [--quick] [--json FILE]

A world of 20 processes is started here and not in the tests: it takes 50 s of CPU and 4 GiB.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import distributed_torchopt
import torch
from diffopt_dist import (
    Call,
    Shard,
    call_all,
    exclusive_batch_partitioner,
    get_rank,
    get_world_size,
    launch,
    local_state,
    parallelize,
    replicate,
)
from diffopt_dist import _engine as engine
from distributed_tasks import TASKS, medians, meta_loss, params_and_tasks, step
from harness import WALL, arguments, report
from torch.distributed import rpc
from torch.distributed.rpc import internal

SHORT, LONG, WORLDS = 3, 0.05, (8, 64, 512)  # LONG in seconds
echo = operator.pos  # a task that does nothing, which pickle can send


def long_enough() -> int:
    """How many inner steps make a task of `LONG` seconds here, for one thread."""
    steps = SHORT
    while True:
        call = step(partial(meta_loss, steps))
        call()
        taken = min(computed(call) for _ in range(3)) / TASKS
        if taken >= LONG:
            return steps
        steps = math.ceil(steps * max(1.1 * LONG / taken, 1.2))


def computed(call: Callable[[], Any]) -> float:
    """Seconds for which this thread computes in a call."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def half(steps: int, part: int) -> None:
    """What one of two workers computes in a meta-step, on inputs that it has."""
    params, tasks = local_state().setdefault("inputs", params_and_tasks())
    torch.autograd.grad(meta_loss(steps, params, tasks[part::2]), params)


def meta_steps(steps: int, rounds: int) -> dict[str, float]:
    """In a world of two: seconds of a meta-step, and the cores the caller takes while it waits."""
    loss = partial(meta_loss, steps)
    spread = lambda workers: step(
        lambda params, tasks: parallelize(loss, workers=workers)(replicate(params), tasks)
    )
    names: dict[str, Callable[[], Any]] = {
        "sequential": step(loss),
        "one worker": spread([1]),
        "two workers": spread([0, 1]),
        "two processes apart": lambda: call_all([Call(i, half, (steps, i)) for i in (0, 1)]),
    }
    torch.testing.assert_close(names["two workers"](), names["sequential"](), rtol=1e-4, atol=1e-6)
    found = medians(names, rounds, WALL)
    waiting = medians({"caller": names["one worker"]}, rounds, time.process_time_ns)["caller"]
    return {**found, "cores of a waiting caller": waiting / found["one worker"]}


def small_tasks(rounds: int) -> dict[str, float]:
    """In a world of two: what a task costs that does nothing, in microseconds."""
    x, count = torch.ones(3), 50
    worker = rpc.get_worker_info().name.replace("0", "1")
    spread = partial(
        parallelize,
        partitioner=lambda args, kwargs, parts: [Shard(args, {}, 1)] * count,
        workers=[1],
    )
    one_by_one = spread(echo, reducer=lambda results, sizes: None)
    contenders = {
        "ours": lambda: one_by_one(x),
        "rpc_async": lambda: [rpc.rpc_async(worker, echo, (x,)).wait() for _ in range(count)],
    }
    found = {}
    for what, clock in {"round trip": WALL, "caller's share": time.process_time_ns}.items():
        for name, taken in medians(contenders, rounds, clock).items():
            found[f"{what}, {name} (us)"] = taken / count * 1e6
    params, tasks = params_and_tasks()
    total = spread(lambda params, x: sum(p.sum() for p in params))
    both = {"": lambda: torch.autograd.grad(total(params, tasks[0]), params)}
    taken = medians(both, rounds, time.process_time_ns)[""]
    return {**found, "caller's share, task and gradient (us)": taken / count * 1e6}


def message_bytes() -> dict[str, int]:
    """Bytes of all messages of a call to two workers, and of one of `echo`."""
    params, tasks = params_and_tasks()
    spread = partial(parallelize, partial(meta_loss, 0), workers=[0, 1])
    own = [[p.clone() for p in params] for _ in tasks]
    shards = [Shard((weights, x[None]), {}, 1) for weights, x in zip(own, tasks, strict=True)]
    once = spread(partitioner=exclusive_batch_partitioner)
    always = spread(partitioner=lambda args, kwargs, parts: shards)
    x = torch.ones(3)
    with torch.no_grad():
        return {
            "weights once to each worker": sent_in(lambda: once(replicate(params), tasks[:, None])),
            "weights with every task": sent_in(always),
            "echo, ours": sent_in(lambda: parallelize(echo, workers=[1])(x)),
            "echo, rpc_async": bytes_of(echo, (x,)),
        }


def sent_in(call: Callable[[], Any]) -> int:
    """How many bytes a call sends to workers."""
    sent, send = [], engine.send

    def counting(rank: int, serve: Any, arguments: tuple[Any, ...], timeout: Any) -> Any:
        sent.append(bytes_of(serve, arguments))
        return send(rank, serve, arguments, timeout)

    engine.send = counting
    try:
        call()
    finally:
        engine.send = send
    return sum(sent)


def bytes_of(function: Any, args: tuple[Any, ...]) -> int:
    """How long a message to a worker is, tensors included."""
    data, tensors = internal._internal_rpc_pickler.serialize(internal.PythonUDF(function, args, {}))
    return len(data) + sum(tensor.nbytes for tensor in tensors)


def measure(rounds: int) -> dict[str, Any] | None:
    """In a world of two: all that is measured of ours."""
    if get_rank() != 0:
        return None
    steps = long_enough()
    return {
        "steps": {"long tasks": steps, "short tasks": SHORT},
        "long tasks": meta_steps(steps, rounds),
        "short tasks": meta_steps(SHORT, rounds),
        "overhead of a task": small_tasks(rounds),
        "bytes": message_bytes(),
    }


def model(found: dict[str, Any]) -> dict[str, Any]:
    """Predicted speed-ups over one process, for tasks as measured and for tasks of a second."""
    small = found["overhead of a task"]
    trip = 2 * small["round trip, ours (us)"] / 1e6
    share = small["caller's share, task and gradient (us)"] / 1e6
    results = {}
    tasks = {name: found[name]["sequential"] / TASKS for name in ("long tasks", "short tasks")}
    for name, task in {**tasks, "tasks of 1 s": 1.0}.items():
        times = {workers: max((task + trip) / workers, share) for workers in WORLDS}
        results[name] = {
            **{f"{w} workers": task / times[w] for w in WORLDS},
            "caller saturated at workers": (task + trip) / share,
        }
    return results


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "")
    rounds, worlds = (3, 1) if options.quick else (15, 10)
    found = launch(measure, 2, (rounds,), timeout=1200.0)[0]
    steps = found.pop("steps")
    for name, speed_up in distributed_torchopt.speed_ups(steps, rounds, worlds).items():
        found[name]["speed-up of two workers, TorchOpt"] = speed_up
    found["predicted speed-up"] = model(found)
    if not options.quick:
        start = time.perf_counter()
        assert launch(get_world_size, 20, timeout=600.0) == [20] * 20
        found["a world of 20 processes, from start to end (s)"] = time.perf_counter() - start
    show(found, steps)
    report(
        {"distributed": found}, ["diffopt-dist", "torch", "torchopt"], options.json, unit="seconds"
    )


def show(found: dict[str, Any], steps: dict[str, int]) -> None:
    """Print what was found."""
    for name, count in steps.items():
        sequential = found[name]["sequential"]
        print(f"{name}: {count} inner steps, {sequential / TASKS * 1e3:.0f} ms, {TASKS} a step")
        for who in [who for who in found[name] if who.startswith(("one", "two"))]:
            print(f"  {who} {sequential / found[name][who]:.2f}x")
        peer = found[name]["speed-up of two workers, TorchOpt"]
        print("  two workers, TorchOpt", peer if isinstance(peer, str) else f"{peer:.2f}x")
        print(f"  cores of a waiting caller: {found[name]['cores of a waiting caller']:.2f}")
    for name, value in found["overhead of a task"].items():
        print(f"{name[:-5]}: {value:.0f} us")
    print("bytes to workers:", found["bytes"])
    for name, values in found["predicted speed-up"].items():
        print(f"predicted, {name}:", {where: round(value, 1) for where, value in values.items()})


if __name__ == "__main__":
    main()
