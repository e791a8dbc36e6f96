"""Parallel calls in real processes equal the same calls made here."""

import re
import time

import pytest
import torch
from diffopt_dist import (
    Call,
    LaunchError,
    RemoteError,
    batch_partitioner,
    call_all,
    get_rank,
    launch,
    mean_reducer,
    parallelize,
    replicate,
    sum_reducer,
)


def test_values_gradients_and_second_derivatives_equal_those_of_a_local_call(on_rank_zero):
    def main():
        def loss(params, x, scale):
            hidden = torch.tanh(x @ params["w"]) * scale
            return {"loss": (hidden**2).mean() + params["b"] ** 3, "count": len(x)}

        generator = torch.Generator().manual_seed(0)
        x = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        w = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
        b = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        params = {"w": w, "b": b}
        derivatives = []
        for call in (
            lambda: loss(params, x, 2.0),
            lambda: parallelize(loss)(replicate(params), x, scale=2.0),
        ):
            result = call()
            first = torch.autograd.grad(result["loss"], (x, w, b), create_graph=True)
            second = torch.autograd.grad(sum((g**2).sum() for g in first), (x, w, b))
            derivatives.append([result["loss"].detach(), *(g.detach() for g in first), *second])
        return derivatives

    local, parallel = on_rank_zero(main)

    for ours, expected in zip(parallel, local, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_gradcheck_and_gradgradcheck_of_a_parallel_call(on_rank_zero):
    def main():
        f = parallelize(lambda x, w: (x @ w).sin().sum() * w[0], reducer=sum_reducer)
        x = torch.tensor([[0.3, -0.5], [0.7, 0.2], [-0.1, 0.4]], dtype=torch.float64)
        w = torch.tensor([0.6, -0.8], dtype=torch.float64, requires_grad=True)
        inputs = (x.requires_grad_(), w)
        call = lambda x, w: f(x, replicate(w))
        return torch.autograd.gradcheck(call, inputs), torch.autograd.gradgradcheck(call, inputs)

    assert on_rank_zero(main) == (True, True)


def test_a_meta_gradient_through_inner_steps_on_the_workers_equals_the_local_one(on_rank_zero):
    def main():
        def adapted_loss(w, x):
            for _ in range(3):
                (g,) = torch.autograd.grad(((x @ w) ** 4).mean(), w, create_graph=True)
                w = w - 0.1 * g
            return ((x @ w) ** 2).mean()

        generator = torch.Generator().manual_seed(1)
        tasks = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
        w = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
        each = [adapted_loss(w, x) for x in tasks]
        local = torch.autograd.grad(torch.stack(each).mean(), w)[0]
        remote = call_all([Call(i % 2, adapted_loss, (w, x), {}) for i, x in enumerate(tasks)])
        return local, torch.autograd.grad(torch.stack(remote).mean(), w)[0]

    local, parallel = on_rank_zero(main)

    torch.testing.assert_close(parallel, local, rtol=1e-12, atol=1e-14)


def test_graphs_are_released_and_partial_use_of_results_is_differentiated(on_rank_zero):
    def main():
        from diffopt_dist._graphs import kept_graphs

        x = torch.arange(1.0, 5.0, requires_grad=True)

        def two(x):
            return x.square().sum(), x.detach(), (x**3).sum(), torch.arange(2)

        first = parallelize(two, reducer=sum_reducer, workers=[0, 1])(x)
        gradient = torch.autograd.grad(first[2], x, retain_graph=True)[0].tolist()
        flags = [value.requires_grad for value in first]
        kept = [sum(call_all([Call(rank, kept_graphs) for rank in (0, 1)]))]
        again = torch.autograd.grad(first[0], x)[0].tolist()  # which lets go of them
        kept.append(sum(call_all([Call(rank, kept_graphs) for rank in (0, 1)])))
        try:
            torch.autograd.grad(first[0], x)
        except RuntimeError as error:
            message = str(error)
        second = parallelize(two, reducer=sum_reducer, workers=[0, 1])(x)
        kept.append(sum(call_all([Call(rank, kept_graphs) for rank in (0, 1)])))
        del second
        deadline = time.monotonic() + 30
        while sum(call_all([Call(rank, kept_graphs) for rank in (0, 1)])):
            assert time.monotonic() < deadline, "a graph outlives its result"
        return gradient, again, flags, kept, message

    gradient, again, flags, kept, message = on_rank_zero(main)

    assert gradient == [3.0, 12.0, 27.0, 48.0]
    assert again == [2.0, 4.0, 6.0, 8.0]
    assert flags == [True, False, True, False]
    assert kept == [2, 0, 2]
    assert "released by an earlier backward pass. Pass `retain_graph=True`" in message


def test_no_graph_is_kept_without_grad_mode_or_tensors_that_require_grad(on_rank_zero):
    def main():
        from diffopt_dist._graphs import kept_graphs

        x = torch.ones(4)
        with torch.no_grad():
            silent = parallelize(torch.sum)(x.clone().requires_grad_())
        constant = parallelize(torch.sum)(x)
        flags = silent.requires_grad, constant.requires_grad
        return (*flags, call_all([Call(1, kept_graphs, (), {})])[0])

    assert on_rank_zero(main) == (False, False, 0)


def test_what_goes_wrong_is_said(on_rank_zero):
    def main():
        messages = []

        def attempt(fn, *args, error, **settings):
            try:
                parallelize(fn, **settings)(*args)
            except error as raised:
                messages.append(str(raised))

        def fail(x):
            raise ZeroDivisionError("of all things")

        attempt(fail, torch.ones(2), workers=[0, 1], error=RemoteError)
        attempt(torch.add, torch.ones(2), torch.ones(3), error=ValueError)
        attempt(torch.sin, torch.tensor(1.0), error=ValueError)
        attempt(torch.sum, torch.ones(2), workers=[7], error=ValueError)
        try:
            torch.vmap(parallelize(torch.sum))(torch.ones(2, 2))
        except ValueError as raised:
            messages.append(str(raised))
        return messages

    raised, lengths, nothing, unknown, functorch = on_rank_zero(main)

    attempts = r"on rank \d failed: ZeroDivisionError: of all things"
    assert re.match(rf"Task \d of 2, `fail` {attempts}, then {attempts}", raised)
    assert 'raise ZeroDivisionError("of all things")' in raised  # the traceback
    assert "lengths [2, 3]" in lengths
    assert "no tensor with a dimension" in nothing
    assert unknown == "There is no rank 7: the world has 3 processes."
    assert "torch.func" in functorch


def test_a_call_that_takes_too_long_fails_in_time():
    def main():
        def sleep(x):
            time.sleep(300)

        if get_rank() == 0:
            parallelize(sleep, workers=[1], timeout=1.0)(torch.ones(2))

    start = time.monotonic()
    with pytest.raises(LaunchError, match=r"`sleep` on rank 1 failed: .*1000 ms"):
        launch(main, 2)  # which does not wait for the sleeper

    assert time.monotonic() - start < 100


def test_outside_a_world_there_is_a_clear_error():
    with pytest.raises(RuntimeError, match="There is no world here"):
        parallelize(torch.sum)(torch.ones(2))


def test_uneven_shards_are_weighted_in_the_mean():
    x = torch.arange(5.0)
    shards = batch_partitioner((x,), {}, 2)
    means = [shard.args[0].mean() for shard in shards]

    assert mean_reducer(means, [shard.size for shard in shards]).item() == 2.0


def test_there_are_no_more_shards_than_examples():
    shards = batch_partitioner(([torch.ones(2, 3), "text"],), {"y": torch.ones(2)}, 5)

    assert [shard.size for shard in shards] == [1, 1]
    assert shards[0].args[0][1] == "text"
    assert shards[1].kwargs["y"].shape == (1,)
