"""Ranks, worlds that torchrun starts, and calls to one rank."""

import ctypes
import time

import pytest
import torch
from diffopt_dist import (
    RemoteError,
    TensorDimensionPartitioner,
    autograd,
    exclusive_batch_partitioner,
    get_local_rank,
    get_rank,
    get_role,
    get_worker_id,
    launch,
    local_state,
    not_on_rank,
    on_rank,
    on_role,
    parallelize,
    parallelize_async,
    rank_non_zero_only,
    rank_zero_only,
    remote_async_call,
    remote_sync_call,
    replicate,
    sum_reducer,
)


def message_of(error, fn):
    try:
        fn()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


def test_functions_run_on_their_ranks_alone():
    def main():
        kinds = on_rank(0, 2), not_on_rank(0, 2), rank_zero_only, rank_non_zero_only
        ran = [kind(lambda x: x + get_rank())(10) for kind in kinds]
        try:
            on_rank(5)(print)()
        except ValueError as error:
            return ran, get_local_rank(), get_worker_id(), str(error)

    results = launch(main, 3, timeout=120.0)

    assert [result[0] for result in results] == [
        [10, None, 10, None],
        [None, 11, None, 11],
        [12, None, None, 12],
    ]
    assert [result[1] for result in results] == [0, 1, 2]
    assert [result[2].split()[1] for result in results] == ["0", "1", "2"]
    assert results[0][3] == "There is no rank 5: the world has 3 processes."


def test_calls_to_a_rank_run_there_at_the_same_time_and_are_differentiated_there(on_rank_zero):
    def main():
        x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        # Rank 2 calls rank 1 in turn, and the graph goes through both.
        cube = lambda x: (x**3, get_rank())
        through = lambda x: remote_sync_call(cube, (x,), to=1)
        first, second = remote_async_call(cube, (x,), to=1), remote_async_call(through, (x,), to=2)
        (here, at), (there, through_at) = first.wait(), second.wait()
        assert first.done()
        assert first.wait()[0] is here
        (g,) = torch.autograd.grad(here + 2 * there, x, create_graph=True)
        (h,) = torch.autograd.grad(g, x)
        messages = [
            message_of(ValueError, lambda: remote_sync_call(print, to=7)),
            message_of(RemoteError, lambda: remote_sync_call(lambda: 1 / 0, to=1)),
        ]
        with torch.no_grad():
            silent = remote_sync_call(cube, (x,), to=1)[0]
        return at, through_at, g.item(), h.item(), silent.requires_grad, messages

    at, through_at, g, h, tracked, messages = on_rank_zero(main)

    assert (at, through_at, tracked) == (1, 1, False)
    assert g == pytest.approx(9 * 2**2)
    assert h == pytest.approx(18 * 2)
    assert messages[0] == "There is no rank 7: the world has 3 processes."
    assert "`<lambda>` on rank 1 failed: ZeroDivisionError" in messages[1]


def test_exclusive_shards_are_single_examples_of_which_workers_get_several(on_rank_zero):
    def main():
        tasks = torch.arange(6.0, dtype=torch.float64).reshape(3, 2).requires_grad_()
        w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        f = lambda w, task: (w * task).sin().sum()
        call = parallelize_async(f, partitioner=exclusive_batch_partitioner)(replicate(w), tasks)
        here = torch.stack([f(w, task) for task in tasks]).mean()
        return [torch.autograd.grad(loss, (w, tasks)) for loss in (here, call.wait())]

    here, there = on_rank_zero(main)

    torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-14)


def test_tensors_may_be_cut_along_any_dimension():
    x, y = torch.arange(6).reshape(2, 3), torch.arange(3)
    along = TensorDimensionPartitioner(-1)((x, replicate(y)), {"z": y}, 2)
    assert [shard.args[0].tolist() for shard in along] == [[[0, 1], [3, 4]], [[2], [5]]]
    assert [shard.kwargs["z"].tolist() for shard in along] == [[0, 1], [2]]
    each = TensorDimensionPartitioner(1, exclusive=True)((x, 7), {}, 2)
    assert [shard.args[0].shape for shard in each] == [(2, 1)] * 3
    assert [shard.args[0].shape for shard in exclusive_batch_partitioner((x,), {}, 9)] == [(3,)] * 2
    with pytest.raises(ValueError, match=r"along their dimension 1 .* no tensor"):
        TensorDimensionPartitioner(1)((y,), {}, 2)
    with pytest.raises(ValueError, match="goes with `exclusive=True`"):
        TensorDimensionPartitioner(keepdim=False)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not with this libc")
def test_threads_that_answer_calls_share_what_memory_is_freed(on_rank_zero, tmp_path):
    def main():
        def arenas():
            libc, path = ctypes.CDLL(None), tmp_path / "malloc"
            libc.fopen.restype = ctypes.c_void_p
            file = ctypes.c_void_p(libc.fopen(str(path).encode(), b"w"))
            libc.malloc_info(0, file)
            libc.fclose(file)
            return path.read_text().count("<heap ")

        for _ in range(20):  # each in another thread
            remote_sync_call(torch.ones, (1000,), to=1)
        return remote_sync_call(arenas, to=1)

    assert on_rank_zero(main) <= 2


def test_torchs_own_autograd_gives_first_derivatives(on_rank_zero):
    def main():
        x, unused = (torch.tensor(3.0, requires_grad=True) for _ in range(2))
        with autograd.context() as number:
            found = autograd.grad(number, [x * x, 2 * x], [x, unused], allow_unused=True)
        with autograd.context() as number:
            try:
                autograd.grad(number, x * x, unused)
            except ValueError as error:
                return found[0].item(), found[1], str(error)

    value, unused, message = on_rank_zero(main)
    assert (value, unused) == (8.0, None)
    assert "Input 0, of shape (), is not part of the graph" in message


def test_parallelize_is_what_its_async_form_gives(on_rank_zero):
    def main():
        x, options = torch.arange(5.0), {"reducer": sum_reducer}
        return [parallelize(torch.sum, **options)(x), parallelize(**options)(torch.sum)(x)]

    assert [t.item() for t in on_rank_zero(main)] == [10.0, 10.0]


def test_roles_say_who_runs_what(on_rank_zero):
    def main():
        found = [remote_sync_call(on_role("agent")(get_rank), to=rank) for rank in (0, 1, 2)]
        roles = [remote_sync_call(get_role, to=rank) for rank in (0, 1, 2)]
        # Of a role, the process that has least to do.
        busy = remote_async_call(lambda: (time.sleep(1.0), get_rank())[1], to="agent")
        other = remote_sync_call(get_rank, to="agent")
        unknown = message_of(ValueError, lambda: remote_sync_call(get_rank, to="critic"))
        return found, roles, {busy.wait(), other}, unknown

    found, roles, agents, unknown = on_rank_zero(main)

    assert found == [None, 1, 2]
    assert roles == [None, "agent", "agent"]
    assert agents == {1, 2}
    assert unknown.startswith("No process has the role 'critic': there are ['agent'].")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"roles": {"a": [0], "b": [0]}}, "gives rank 0 2 roles in a world of 2"),
        ({"roles": {"a": [2]}}, "gives rank 2 1 roles in a world of 2"),
        ({"roles": {"a b": [1]}}, "letters, digits, - and _, .* got 'a b'"),
        ({"expendable": [0, 1]}, r"`expendable` must name some of the ranks .* got \[0, 1\]"),
    ],
)
def test_worlds_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        launch(print, 2, **settings)


def test_agents_keep_their_state_and_differentiate_through_one_another(on_rank_zero):
    """Two agents on quadratic losses; each one's step looks through the other's (LOLA)."""

    def loss(own, other, target):
        return (own * other - target) ** 2 + 0.1 * own**2

    def start(value, target):
        local_state()["agent"] = torch.tensor(value, dtype=torch.float64), target

    def answer(other, lr):
        """The policy of this agent after a naive step against the other's."""
        own, target = local_state()["agent"]
        own = own.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(own, other, target), own, create_graph=True)
        return own - lr * g

    def step(opponent, lr):
        own, target = local_state()["agent"]
        own = own.clone().requires_grad_()
        answered = remote_sync_call(answer, (own, lr), to=opponent)
        (g,) = torch.autograd.grad(loss(own, answered, target), own)
        return g

    def main():
        values, targets, lr = (0.7, -0.4), (1.0, 2.0), 0.3
        for rank in (1, 2):
            remote_sync_call(start, (values[rank - 1], targets[rank - 1]), to=rank)
        steps = [remote_async_call(step, (3 - rank, lr), to=rank) for rank in (1, 2)]
        here = []
        for own, other, target, others in (
            (*values, *targets),
            (*values[::-1], *targets[::-1]),
        ):
            own, other = (
                torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (own, other)
            )
            (g,) = torch.autograd.grad(loss(other, own, others), other, create_graph=True)
            here.append(torch.autograd.grad(loss(own, other - lr * g, target), own)[0])
        return [step.wait() for step in steps], here

    there, here = on_rank_zero(main)

    torch.testing.assert_close(there, here, rtol=1e-14, atol=0)
