"""Processes that die, stop, raise, or answer nonsense: results are as if nothing had been."""

import math
import os
import signal
import time

import pytest
import torch
from diffopt_dist import (
    LaunchError,
    RemoteError,
    exclusive_batch_partitioner,
    get_rank,
    get_role,
    get_world_size,
    launch,
    parallelize,
    parallelize_async,
    remote_sync_call,
    replicate,
    sum_reducer,
)


class OnceHere(torch.autograd.Function):
    """The identity, which does something once on one rank: forward, or in a backward pass."""

    @staticmethod
    def forward(ctx, x, when, rank, marker, deed):
        ctx.settings = when, rank, marker, deed
        happen(0, *ctx.settings)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        when, *others = ctx.settings
        return OnceHere.apply(g, when - 1, *others), None, None, None, None


def happen(now, when, rank, marker, deed):
    if now == when and get_rank() == rank and not os.path.exists(marker):
        open(marker, "w").close()
        deed()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def derivatives(call, w, tasks, marker):
    """The value of a loss, its gradient, and a second derivative."""
    loss = call(replicate(w), tasks, marker)
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), w)
    return [loss.detach(), g.detach(), h]


def compare(when, rank, deed, folder, **settings):
    """Derivatives with and without a fault, from the same workers, and those computed here."""

    def task_loss(w, task, marker="nowhere"):
        if marker:
            w = OnceHere.apply(w, when, rank, marker, deed)
        noise = torch.rand(3, dtype=torch.float64)
        (g,) = torch.autograd.grad(((w * task).sin() * noise).sum(), w, create_graph=True)
        return ((w - 0.1 * g) * task).square().sum()

    generator = torch.Generator().manual_seed(0)
    tasks = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    w = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    options = {"partitioner": exclusive_batch_partitioner, "reducer": sum_reducer, "seed": 3}
    found = []
    for workers in ([0], [0, rank, get_world_size() - 1]):
        marker = str(folder / f"{deed.__name__}-{when}") if len(workers) > 1 else ""
        call = parallelize(task_loss, workers=workers, **options, **settings)
        begun = time.monotonic()
        found.append(derivatives(call, w, tasks, marker))
    assert os.path.exists(marker), "nothing happened"
    return found, time.monotonic() - begun


def test_workers_killed_forward_backward_and_in_a_second_backward_change_no_bit(tmp_path):
    def main():
        if get_rank() == 0:  # with a worker to be killed each time, and one that remains
            return [compare(when, when + 1, die, tmp_path)[0] for when in (0, 1, 2)]

    for undisturbed, disturbed in launch(main, 5, timeout=240.0, expendable=[1, 2, 3])[0]:
        for ours, expected in zip(disturbed, undisturbed, strict=True):
            assert torch.equal(ours, expected)


def test_a_stopped_worker_delays_a_result_by_its_time_out_and_works_again_when_it_continues(
    tmp_path,
):
    def main():
        if get_rank() != 0:
            return None
        pid = remote_sync_call(os.getpid, to=1)
        pair, seconds = compare(0, 1, stop, tmp_path, timeout=6.0, retries=3)
        os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 60
        where = parallelize(lambda x: get_rank(), reducer=lambda ranks, sizes: ranks)
        while 1 not in where(torch.ones(3)):
            assert time.monotonic() < deadline, "the worker gets no work any more"
            time.sleep(0.5)
        return pair, seconds

    (undisturbed, disturbed), seconds = launch(main, 3, timeout=240.0)[0]

    for ours, expected in zip(disturbed, undisturbed, strict=True):
        assert torch.equal(ours, expected)
    assert 6 <= seconds < 100


def test_a_lost_worker_gets_no_task_as_long_as_it_does_not_answer():
    def main():
        if get_rank() != 0:
            return None
        from diffopt_dist import _engine, _worker

        asked, send = [], _engine.send

        def watched(rank, serve, *others):
            if serve is _worker.serve:
                asked.append(rank)
            return send(rank, serve, *others)

        message_of(RemoteError, lambda: remote_sync_call(die, to=1))
        _engine.send = watched
        x = torch.arange(8.0, requires_grad=True)
        options = {"partitioner": exclusive_batch_partitioner, "reducer": sum_reducer}
        parallelize(torch.square, workers=[1, 2], **options)(x).backward()
        return asked, x.grad.tolist()

    asked, gradient = launch(main, 3, timeout=120.0, expendable=[1])[0]

    assert asked == [2] * 16
    assert gradient == [2.0 * i for i in range(8)]


def test_out_of_retries_the_error_names_task_and_workers():
    def main():
        if get_rank() == 0:
            try:
                parallelize(
                    lambda x: os.kill(os.getpid(), signal.SIGKILL), workers="doomed", retries=1
                )(torch.ones(2))
            except RemoteError as error:
                return str(error), remote_sync_call(get_role, to=0)

    message, role = launch(
        main, 3, timeout=120.0, expendable=[1, 2], roles={"doomed": [1, 2], "first": [0]}
    )[0]

    assert "Task " in message
    assert "`<lambda>` on rank " in message
    assert "then on rank " in message
    assert "no answer came" in message
    assert role == "first"


def test_answers_that_are_none_are_retried_elsewhere_and_named(on_rank_zero, tmp_path):
    def main():
        def answer(x, bad):
            return bad(x) if get_rank() == 1 else x.square().sum()

        def fail(x):
            raise KeyError("of its own")

        class UnsentError(Exception):
            def __reduce__(self):
                raise TypeError("an exception that cannot be sent")

        def fail_strangely(x):
            raise UnsentError("strange")

        bads = {
            "nan": lambda x: x.sum() * math.nan,
            "gradient": lambda x: (x.sum() - x.sum()).sqrt(),  # zero, with a derivative of NaN
            "unpicklable": lambda x: (i for i in range(3)),
            "raise": fail,
            "strange": fail_strangely,
            "exit": lambda x: os.sys.exit(3),
        }
        found, messages = {}, {}
        for name, bad in bads.items():
            x = torch.arange(4.0, requires_grad=True)
            loss = parallelize(answer, reducer=sum_reducer, workers=[0, 1])(x, replicate(bad))
            loss.backward()
            found[name] = loss.item(), x.grad.tolist()
            try:
                parallelize(answer, workers=[1], retries=0)(x, replicate(bad)).backward()
            except RemoteError as error:
                messages[name] = str(error), type(error.__cause__).__name__
        x = torch.ones(2, requires_grad=True)
        lax = parallelize(answer, allow_nan=True, workers=[1])(x, replicate(bads["nan"]))
        return found, messages, lax.item()

    found, messages, lax = on_rank_zero(main)

    values = {name: value for name, (value, _) in found.items()}
    # The zero of rank 1 was a value like others; its backward pass is what fails.
    assert values.pop("gradient") in (1.0, 13.0)
    assert set(values.values()) == {14.0}
    assert {name: gradient for name, (_, gradient) in found.items() if name != "gradient"} == {
        name: [0.0, 2.0, 4.0, 6.0] for name in values
    }
    for name, text, cause in (
        ("nan", "the result has a NaN", "FloatingPointError"),
        ("gradient", "the result has a NaN", "FloatingPointError"),
        ("unpicklable", "generator", "TypeError"),
        ("raise", "KeyError: 'of its own'", "KeyError"),
        ("strange", "UnsentError: strange", "NoneType"),
        ("exit", "SystemExit: 3", "SystemExit"),
    ):
        assert "ask 0 of 1, `answer` on rank 1 failed" in messages[name][0]
        assert text in messages[name][0]
        assert messages[name][1] == cause
    assert messages["gradient"][0].startswith("The backward pass of task")
    assert math.isnan(lax)


def test_when_the_controller_dies_all_end_and_the_error_says_so(tmp_path):
    def work(x):
        (tmp_path / "begun").touch()
        time.sleep(300)

    def main():
        (tmp_path / f"pid{get_rank()}").write_text(str(os.getpid()))
        if get_rank() == 0:
            parallelize(work, workers=[1])(torch.ones(1))
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(int((tmp_path / "pid0").read_text()), signal.SIGKILL)

    begun = time.monotonic()
    with pytest.raises(LaunchError, match="Rank 0 ended by itself, with exit code -9"):
        launch(main, 2, timeout=240.0)

    assert time.monotonic() - begun < 120
    for rank in (0, 1):
        pid = int((tmp_path / f"pid{rank}").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_graph_whose_lease_has_ended_is_made_again(on_rank_zero):
    def main():
        def leased():  # not those that earlier tests have left
            from diffopt_dist import _store

            return sum(kept.lease == 0.1 for kept in list(_store._kept.values()))

        x = torch.arange(4.0, requires_grad=True)
        noisy = lambda x: (x * torch.rand(2)).square().sum()
        loss = parallelize(noisy, reducer=sum_reducer, workers=[1, 2], lease=0.1)(x)
        deadline = time.monotonic() + 60
        while remote_sync_call(leased, to=1) + remote_sync_call(leased, to=2):
            assert time.monotonic() < deadline, "a graph outlives its lease"
            time.sleep(0.1)
        (g,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss.item(), (g * x).sum().item(), torch.autograd.grad((g * x).sum(), x)[0], g

    loss, product, h, g = on_rank_zero(main)

    assert product == pytest.approx(2 * loss)  # of a quadratic form, in the same noise
    torch.testing.assert_close(h, 2 * g.detach())


def test_arguments_that_have_been_changed_in_place_are_refused_where_they_matter(
    on_rank_zero, tmp_path
):
    def main():
        def wait(x):
            while not (tmp_path / "changed").exists():
                time.sleep(0.01)
            return x.sum()

        x = torch.ones(2, dtype=torch.float64)
        started = parallelize_async(wait, workers=[1])(x)
        x.add_(1)
        (tmp_path / "changed").touch()
        messages = [message_of(RuntimeError, started.wait)]
        w = torch.ones(2, dtype=torch.float64, requires_grad=True)
        y = w * 1.0
        loss = parallelize(lambda y: y.pow(3).sum(), reducer=sum_reducer, workers=[1])(y)
        y.mul_(5.0)
        messages.append(
            message_of(RuntimeError, lambda: torch.autograd.grad(loss, w, create_graph=True))
        )
        # Without further derivatives the worker has what it needs.
        return messages, torch.autograd.grad(loss, w)[0].tolist()

    messages, gradient = on_rank_zero(main)

    for message in messages:
        assert "Tensor 0, of shape (2,), of task 0 of 1, `" in message
        assert "has been changed in place since the call was made" in message
    assert gradient == [3.0, 3.0]


def message_of(error, fn):
    try:
        fn()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": 0.0}, "`timeout` must be a positive number of seconds, got 0.0"),
        ({"lease": -1.0}, "`lease` must be a positive number of seconds, got -1.0"),
        ({"retries": -1}, "`retries` must not be negative, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        parallelize(torch.sum, **settings)
