"""Worlds in which all ranks do the same, and runs that are killed and go on."""

import os
import random
import signal
import subprocess
import sys
import time

import cloudpickle
import numpy as np
import pytest
import torch
from diffopt_dist import (
    Checkpoint,
    average_gradients,
    exclusive_batch_partitioner,
    get_rank,
    launch,
    parallelize,
    replicate,
    seed_rank,
    sum_reducer,
)
from torch.nn.parallel import DistributedDataParallel


def message_of(error, fn):
    try:
        fn()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


def adapted_loss(w, x):
    """Three inner steps, and the loss after them."""
    for _ in range(3):
        (g,) = torch.autograd.grad(((x @ w) ** 4).mean(), w, create_graph=True)
        w = w - 0.1 * g
    return ((x @ w) ** 2).mean()


class MetaLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.3, -0.4, 0.5], dtype=torch.float64))

    def forward(self, x):
        return adapted_loss(self.w, x)


def test_meta_gradients_over_collectives_equal_the_sequential_ones():
    def main():
        generator = torch.Generator().manual_seed(0)
        tasks = torch.randn(6, 5, 3, generator=generator, dtype=torch.float64)
        expected = MetaLoss()
        torch.stack([expected(x) for x in tasks]).mean().backward()

        # Even shards, accumulated, in torch's own wrapper.
        model = DistributedDataParallel(MetaLoss())
        mine = tasks[3 * get_rank() :][:3]
        for x in mine[:-1]:
            with model.no_sync():
                (model(x) / 3).backward()
        (model(mine[-1]) / 3).backward()

        # Uneven ones, accumulated.
        uneven = MetaLoss()
        mine = tasks[:5] if get_rank() == 0 else tasks[5:]
        for x in mine:
            (uneven(x) / len(mine)).backward()
        average_gradients(uneven.parameters(), weight=len(mine))

        w, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
        if get_rank() == 1:
            w.sum().backward()
        average_gradients([w, unused], weight=get_rank())
        messages = [
            message_of(ValueError, lambda: average_gradients([torch.ones(1 + get_rank())])),
            message_of(ValueError, lambda: average_gradients([w], weight=0.0)),
        ]
        drawn = seed_rank(5), torch.rand(()).item(), np.random.rand(), random.random()
        again = seed_rank(5), torch.rand(()).item(), np.random.rand(), random.random()
        other = seed_rank(5, step=1)
        grads = expected.w.grad, model.module.w.grad, uneven.w.grad
        return grads, w.grad, unused.grad, messages, drawn, again, other

    results = launch(main, 2, timeout=240.0, collectives="gloo")

    for grads, shared, unused, messages, drawn, again, other in results:
        expected, even, uneven = grads
        torch.testing.assert_close(even, expected, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(uneven, expected, rtol=1e-12, atol=1e-15)
        assert shared.tolist() == [1.0, 1.0]
        assert unused.tolist() == [0.0, 0.0]
        assert messages[0] == "The ranks average parameters of [1, 2] elements, which must agree."
        assert "The ranks' weights are [0.0, 0.0]" in messages[1]
        assert drawn == again
        assert other != drawn[0]
    assert not set(results[0][4]) & set(results[1][4])


def test_gradients_cannot_be_averaged_without_a_process_group():
    with pytest.raises(RuntimeError, match="There is no process group"):
        average_gradients([torch.ones(1)])


def test_a_checkpoint_is_whole_and_brings_the_random_numbers_back(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run")
    assert checkpoint.load("nothing yet") == "nothing yet"
    checkpoint.save({"step": 1})
    expected = torch.rand(3), np.random.rand(), random.random()

    class UnpicklableError(Exception):
        pass

    def fail():
        raise UnpicklableError

    broken = type("Broken", (), {"__reduce__": lambda self: fail()})()
    with pytest.raises(UnpicklableError):
        checkpoint.save({"step": 2, "weights": torch.ones(1000), "broken": broken})

    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert checkpoint.load(None) == {"step": 1}
    drawn = torch.rand(3), np.random.rand(), random.random()
    assert torch.equal(drawn[0], expected[0])
    assert drawn[1:] == expected[1:]


def task_loss(w, x):
    time.sleep(0.02)
    (g,) = torch.autograd.grad((x @ w).square().mean(), w, create_graph=True)
    noise = torch.randn((), dtype=torch.float64)
    return ((x @ (w - 0.1 * g)) ** 2).mean() + 0.1 * noise * w.sum()


def train(path, steps=20):
    """Meta-train from where the checkpoint is, with random tasks and random losses."""
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    outer = torch.optim.Adam([w], lr=0.05)
    checkpoint = Checkpoint(path)
    state = checkpoint.load({"step": 0, "w": w.data, "outer": outer.state_dict()})
    w.data.copy_(state["w"])
    outer.load_state_dict(state["outer"])
    cut = {"partitioner": exclusive_batch_partitioner, "reducer": sum_reducer, "workers": [0, 1]}
    for step in range(state["step"], steps):
        tasks = torch.randn(4, 5, 3, dtype=torch.float64)
        loss = parallelize(task_loss, seed=step, **cut)(replicate(w), tasks)
        outer.zero_grad()
        loss.backward()
        outer.step()
        checkpoint.save({"step": step + 1, "w": w.data, "outer": outer.state_dict()})


def test_a_run_that_is_killed_at_a_random_moment_reaches_the_same_parameters(
    on_rank_zero, tmp_path
):
    on_rank_zero(lambda: train(tmp_path / "undisturbed"))
    job, disturbed = tmp_path / "job", tmp_path / "disturbed"
    job.write_bytes(cloudpickle.dumps(lambda: train(disturbed) if get_rank() == 0 else None))
    program = f"""
import cloudpickle
from diffopt_dist import launch
with open({str(job)!r}, "rb") as file:
    launch(cloudpickle.load(file), 2)
"""
    begun = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    deadline = time.monotonic() + 120
    while not disturbed.exists():
        assert time.monotonic() < deadline, "the run does not begin"
        time.sleep(0.01)
    time.sleep(0.3 * random.random())
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    reached = Checkpoint(disturbed).load(None)["step"]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)

    runs = "disturbed", "undisturbed"
    found, expected = (Checkpoint(tmp_path / run).load(None) for run in runs)

    assert reached > 0
    assert found["step"] == expected["step"] == 20
    assert torch.equal(found["w"], expected["w"])
