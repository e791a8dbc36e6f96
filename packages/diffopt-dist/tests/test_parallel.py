"""Parallel calls in real processes equal the same calls made here."""

import re
import time

import pytest
import torch
from diffopt_dist import (
    Call,
    LaunchError,
    RemoteError,
    call_all,
    get_rank,
    launch,
    parallelize,
    remote_sync_call,
    replicate,
    sum_reducer,
)

LEASE = 321.0  # seconds


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


def kept():
    """How many graphs of these tests this process keeps; not those that others have left."""
    from diffopt_dist import _store

    return sum(kept.lease == LEASE for kept in list(_store._kept.values()))


def test_graphs_are_released_and_partial_use_of_results_is_differentiated(on_rank_zero):
    def main():
        x = torch.arange(1.0, 5.0, requires_grad=True)

        def two(x):
            return x.square().sum(), x.detach(), (x**3).sum(), torch.arange(2)

        f = parallelize(two, reducer=sum_reducer, workers=[0, 1], lease=LEASE)
        first = f(x)
        gradient = torch.autograd.grad(first[2], x, retain_graph=True)[0].tolist()
        flags = [value.requires_grad for value in first]
        counts = [sum(call_all([Call(rank, kept) for rank in (0, 1)]))]
        again = torch.autograd.grad(first[0], x)[0].tolist()  # which lets go of them
        counts.append(sum(call_all([Call(rank, kept) for rank in (0, 1)])))
        try:
            torch.autograd.grad(first[0], x)
        except RuntimeError as error:
            message = str(error)
        second = f(x)
        counts.append(sum(call_all([Call(rank, kept) for rank in (0, 1)])))
        del second
        deadline = time.monotonic() + 30
        while sum(call_all([Call(rank, kept) for rank in (0, 1)])):
            assert time.monotonic() < deadline, "a graph outlives its result"
        return gradient, again, flags, counts, message

    gradient, again, flags, counts, message = on_rank_zero(main)

    assert gradient == [3.0, 12.0, 27.0, 48.0]
    assert again == [2.0, 4.0, 6.0, 8.0]
    assert flags == [True, False, True, False]
    assert counts == [2, 0, 2]
    assert "released by an earlier backward pass. Pass `retain_graph=True`" in message


def test_no_graph_is_kept_without_grad_mode_or_tensors_that_require_grad(on_rank_zero):
    def main():
        x, f = torch.ones(4), parallelize(torch.sum, lease=LEASE)
        with torch.no_grad():
            silent = f(x.clone().requires_grad_())
        constant = f(x)
        flags = silent.requires_grad, constant.requires_grad
        return (*flags, call_all([Call(1, kept)])[0])

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
        attempt(torch.sum, torch.ones(2), workers=[], error=ValueError)
        try:
            torch.vmap(parallelize(torch.sum))(torch.ones(2, 2))
        except ValueError as raised:
            messages.append(str(raised))
        return messages

    raised, lengths, nothing, unknown, none, functorch = on_rank_zero(main)

    attempts = r"on rank \d failed: ZeroDivisionError: of all things"
    assert re.match(rf"Task \d of 2, `fail` {attempts}, then {attempts}", raised)
    assert 'raise ZeroDivisionError("of all things")' in raised  # the traceback
    assert "lengths [2, 3]" in lengths
    assert "no tensor with a dimension" in nothing
    assert unknown == "There is no rank 7: the world has 3 processes."
    assert none == "There must be a rank to do the work; got none."
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


def test_tensors_in_modules_methods_closures_and_objects_get_their_gradients(on_rank_zero):
    def main():
        class Tasks:
            def __init__(self, scale):
                self.scale = scale

            def loss(self, module, x):
                module.count += 1  # of the worker's copy
                return (self.scale * module(x) * captured).square().mean()

        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        module[2].bias.requires_grad_(False)
        module.tied = module[0].weight
        module.register_buffer("count", torch.zeros(()))
        module.double()
        captured = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        tasks = Tasks(torch.tensor([1.5, -0.5], dtype=torch.float64, requires_grad=True))
        x = torch.randn(5, 3, dtype=torch.float64)
        inputs = [p for p in module.parameters() if p.requires_grad]
        inputs += [captured, tasks.scale]
        found = []
        for loss in (tasks.loss(module, x), parallelize(tasks.loss)(replicate(module), x)):
            first = torch.autograd.grad(loss, inputs, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
            found.append([g.detach() for g in (*first, *second)])
        kinds = remote_sync_call(
            lambda m: [type(p).__name__ for p in m.parameters()] + [m[0].weight is m.tied],
            (module,),
            to=1,
        )
        back = remote_sync_call(lambda: torch.nn.Linear(2, 1), to=1)
        return found, module.count.item(), kinds, [p.requires_grad for p in back.parameters()]

    (here, there), count, kinds, back = on_rank_zero(main)

    torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-14)
    assert count == 1  # of the local call alone
    assert kinds == [*["Parameter"] * 4, True]
    assert back == [True, True]


def test_each_of_several_results_has_a_backward_pass_of_its_own(on_rank_zero):
    def main():
        x = torch.tensor(3.0, requires_grad=True)
        for loss in call_all([Call(rank, torch.square, (x,)) for rank in (0, 1, 2)]):
            loss.backward()
        return x.grad.item()

    assert on_rank_zero(main) == 18.0


def test_an_inner_loop_on_a_worker_needs_no_argument_that_requires_grad(on_rank_zero):
    def main():
        def fit(x):
            w = torch.zeros((), requires_grad=True)
            (g,) = torch.autograd.grad((w - x).square().sum(), w)
            return w - 0.5 * g

        return remote_sync_call(fit, (torch.tensor(3.0),), to=1).item()

    assert on_rank_zero(main) == 3.0
