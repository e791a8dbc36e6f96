"""What travels: small tensors in their messages, tensors of many tasks once, no foreign devices."""

import math
import pickle

import pytest
import torch
from diffopt_dist import (
    RemoteError,
    exclusive_batch_partitioner,
    get_rank,
    parallelize,
    remote_sync_call,
    replicate,
    sum_reducer,
)
from diffopt_dist._code import dumps
from diffopt_dist._wire import SMALL, Tensors, is_small
from diffopt_dist._worker import _has_nan

EACH = {"partitioner": exclusive_batch_partitioner, "reducer": sum_reducer}


def message_of(error, fn):
    try:
        fn()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5, dtype=torch.float64),
        torch.empty(0, 3),
        torch.arange(6).reshape(2, 3),
        torch.tensor([1.0, -0.0, float("nan")], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.ones(SMALL + 1, dtype=torch.uint8),
        torch.ones(2, 2).to_sparse(),
    ],
)
def test_a_tensor_arrives_as_it_was_sent(tensor):
    (arrived,) = pickle.loads(pickle.dumps(Tensors([tensor])))

    assert (arrived.dtype, arrived.layout) == (tensor.dtype, tensor.layout)
    assert arrived.layout != torch.strided or arrived.stride() == tensor.stride()
    torch.testing.assert_close(arrived, tensor, rtol=0, atol=0, equal_nan=True)


def test_tensors_that_bytes_alone_do_not_describe_travel_apart():
    matrix = torch.ones(4, 3)
    apart = [
        matrix.t(),
        matrix[:, :1],
        torch.ones(SMALL + 1, dtype=torch.uint8),
        matrix.to_sparse(),
    ]
    apart += [torch.ones(2, dtype=torch.complex64).conj()]

    assert is_small(matrix)
    assert [is_small(tensor) for tensor in apart] == [False] * len(apart)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_infinities_and_squares_that_overflow_are_no_nan(dtype):
    largest = torch.finfo(dtype).max
    fine = torch.tensor([math.inf, -math.inf, 0.0, largest, largest], dtype=dtype)

    assert not _has_nan(fine)
    assert not _has_nan(torch.empty(0, dtype=dtype))
    assert _has_nan(torch.cat([fine, fine.new_tensor([math.nan])]))


def messages(call):
    """What a call gives, and the sizes of the large tensors in its messages, by worker."""
    from diffopt_dist import _engine
    from diffopt_dist._share import Lent

    sent, send = {}, _engine.send

    def counted(rank, serve, arguments, timeout):
        for step in arguments[1] if len(arguments) == 2 else ():
            items = [item.tensor if isinstance(item, Lent) else item for item in step.tensors]
            large = [item.numel() for item in items if item is not None and not is_small(item)]
            sent.setdefault(rank, []).extend(large)
        return send(rank, serve, arguments, timeout)

    _engine.send = counted
    try:
        return call(), sent
    finally:
        _engine.send = send


def derivatives(f, w, tasks):
    loss = f(replicate(w), tasks)
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    return [loss.detach(), g.detach(), torch.autograd.grad(g.square().sum(), w)[0]]


def held():
    from diffopt_dist import _store

    return sum(isinstance(kept.value, torch.Tensor) for kept in list(_store._kept.values()))


def test_a_tensor_of_many_tasks_is_sent_once_to_each_worker_and_no_bit_changes(on_rank_zero):
    def main():
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(5000, generator=generator, dtype=torch.float64, requires_grad=True)
        tasks = torch.randn(6, 5000, generator=generator, dtype=torch.float64)
        captured = torch.ones(3000, dtype=torch.float64, requires_grad=True)

        def loss(w, x):
            value = (w * x).sin().sum() * captured.mean()
            w.data.zero_()  # of this task's copy
            return value

        def pure(w, x):
            return (w * x).sin().sum() * captured.mean()

        alone = lambda w, tasks: sum(pure(w.value, x) for x in tasks)
        f = parallelize(loss, workers=[1, 2], **EACH)
        with torch.no_grad():
            value, forward = messages(lambda: f(replicate(w), tasks))
        there, all_sent = messages(
            lambda: derivatives(parallelize(pure, workers=[1, 2], **EACH), w, tasks)
        )
        left = [remote_sync_call(held, to=rank) for rank in (1, 2)]
        return value, forward, there, derivatives(alone, w, tasks), all_sent, left

    value, forward, there, here, all_sent, left = on_rank_zero(main)

    torch.testing.assert_close(value, here[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-14)
    for sent in (forward, all_sent):
        assert sorted(sent) == [1, 2]
        for sizes in sent.values():
            assert sizes.count(3000) == 1  # what the function captures
    assert sum(sizes.count(5000) for sizes in forward.values()) == 2 + 6  # w, and the tasks
    assert left == [0, 0]


def test_a_worker_that_has_lost_a_shared_tensor_is_sent_it_again(on_rank_zero):
    def main():
        def forgetful(w, x):
            from diffopt_dist import _store

            _store.forget([key for key, kept in list(_store._kept.items()) if kept.lease == 500.0])
            return (w * x).square().sum()

        w = torch.arange(5000.0, dtype=torch.float64).div_(5000).requires_grad_()
        tasks = torch.linspace(0, 1, 5, dtype=torch.float64)
        f = parallelize(forgetful, workers=[1], retries=0, lease=500.0, **EACH)
        there, sent = messages(lambda: derivatives(f, w, tasks))
        alone = lambda w, tasks: sum((w.value * x).square().sum() for x in tasks)
        return there, derivatives(alone, w, tasks), sent[1].count(5000)

    there, here, times = on_rank_zero(main)

    torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-14)
    assert times >= 5


def test_a_tensor_on_another_device_is_refused_on_its_way_out_and_back(on_rank_zero):
    def main():
        x = torch.ones(2, 3, device="meta")
        back = lambda: torch.ones(4, device="meta")
        return [
            message_of(ValueError, lambda: remote_sync_call(torch.sum, (x,), to=1)),
            message_of(ValueError, lambda: parallelize(lambda y: (x * y).sum())(torch.ones(2, 3))),
            message_of(RemoteError, lambda: remote_sync_call(back, to=1)),
            remote_sync_call(get_rank, to=1),
        ]

    out, captured, back, rank = on_rank_zero(main)

    for message in (out, captured):
        assert message.startswith("A tensor of shape (2, 3) on meta cannot be sent to another")
        assert "Pass `x.cpu()`" in message
    assert "on rank 1 failed: ValueError: A tensor of shape (4,) on meta cannot be sent" in back
    assert rank == 1  # who is not taken for lost


def test_functions_sent_by_value_remember_their_file_down_to_the_inner_ones():
    def outer():
        return lambda: None

    sent = pickle.loads(dumps(outer))

    assert sent.__code__.co_filename == sent().__code__.co_filename == __file__
    assert sent.__code__.co_firstlineno == outer.__code__.co_firstlineno
