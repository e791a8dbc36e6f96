"""Ranks, worlds that torchrun starts, and calls to one rank."""

import ctypes
import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from diffopt_dist import (
    Checkpoint,
    RemoteError,
    TensorDimensionPartitioner,
    auto_init_rpc,
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


def torchrun_command(tmp_path, body, *options):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(body))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *options]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return ([*command, "--local-addr", "localhost", str(script)],)


def torchrun(tmp_path, body):
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"env": settings, "capture_output": True, "text": True, "timeout": 240}
    return subprocess.run(*torchrun_command(tmp_path, body), **options)


def test_torchruns_processes_become_a_world(tmp_path):
    found = torchrun(
        tmp_path,
        """
        import torch
        from diffopt_dist import auto_init_rpc, get_local_rank, get_rank, parallelize, sum_reducer

        begun = []

        @auto_init_rpc(lambda: begun.append(get_rank()))
        def main():
            assert begun == [get_rank()] == [get_local_rank()]
            if get_rank() == 0:
                x = torch.arange(4.0, requires_grad=True)
                parallelize(lambda x: x.square().sum(), reducer=sum_reducer)(x).backward()
                print("gradient", x.grad.tolist())

        main()
        """,
    )
    assert found.returncode == 0, found.stderr
    assert "gradient [0.0, 2.0, 4.0, 6.0]" in found.stdout


def test_an_error_ends_all_of_torchruns_processes(tmp_path):
    found = torchrun(
        tmp_path,
        """
        from diffopt_dist import auto_init_rpc, get_rank

        @auto_init_rpc()
        def main():
            if get_rank() == 1:
                raise KeyError("lost")

        main()
        """,
    )
    assert found.returncode != 0
    assert "KeyError: 'lost'" in found.stderr


def test_worlds_that_cannot_be_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="`backend` must be 'tensorpipe'"):
        auto_init_rpc(backend="gloo")
    with pytest.raises(RuntimeError, match="The environment has no RANK, WORLD_SIZE"):
        auto_init_rpc()(print)()
    settings = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"meets at 192\.0\.2\.1, .*interface='eth0'"):
        auto_init_rpc()(print)()


def test_a_joined_process_cannot_join_again():
    def main():
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "1",
        }
        try:
            auto_init_rpc()(print)()
        except RuntimeError as error:
            return str(error)

    assert launch(main, 1, timeout=120.0) == ["This process is a member of a world already."]


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


def test_torchrun_starts_a_world_again_that_goes_on_and_leaves_nothing_when_it_is_killed(tmp_path):
    body = f"""
        import os, signal, time
        from pathlib import Path
        from diffopt_dist import Checkpoint, auto_init_rpc, get_rank, get_role, remote_sync_call

        @auto_init_rpc(roles={{"second": [1]}}, collectives="gloo")
        def main():
            folder = Path({str(tmp_path)!r})
            attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
            (folder / f"pid{{get_rank()}}-{{attempt}}").write_text(str(os.getpid()))
            if get_rank() == 0:
                checkpoint = Checkpoint(folder / "run")
                step = checkpoint.load(0)
                assert remote_sync_call(get_role, to="second") == "second"
                checkpoint.save(step + 1)
                if step == 0:
                    remote_sync_call(lambda: os.kill(os.getpid(), signal.SIGKILL), to=1)
                while True:
                    time.sleep(1.0)

        main()
        """
    pids = [tmp_path / f"pid{rank}-1" for rank in (0, 1)]
    deadline = time.monotonic() + 200
    with subprocess.Popen(*torchrun_command(tmp_path, body, "--max-restarts", "1")) as process:
        try:
            while Checkpoint(tmp_path / "run").load(0) < 2:
                assert process.poll() is None, "torchrun has ended"
                assert time.monotonic() < deadline, "the world does not begin again"
                time.sleep(0.1)
        finally:
            process.kill()
    for path in pids:
        while runs(int(path.read_text())):
            assert time.monotonic() < deadline, "a process outlives torchrun"
            time.sleep(0.1)


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


HOSTS = """
unshare --net sleep 100 &
far=$!
trap "kill $far" EXIT
until nsenter --net --target $far ip link set lo up; do sleep 0.1; done
ip link set lo up
ip link add near type veth peer name far netns $far
ip addr add 10.77.0.1/24 dev near; ip link set near up
nsenter --net --target $far sh -c "ip addr add 10.77.0.2/24 dev far; ip link set far up"
export WORLD_SIZE=2 MASTER_ADDR=10.77.0.1 MASTER_PORT=29511 OMP_NUM_THREADS=1
RANK=1 nsenter --net --target $far $PYTHON script.py far &
other=$!
RANK=0 $PYTHON script.py near
status=$?
kill -9 $other
exit $status
"""
CAN_NETWORK = ["unshare", "-rn", "ip", "link", "add", "near", "type", "veth", "peer", "name", "far"]


def can_make_networks():
    try:
        return subprocess.run(CAN_NETWORK, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_make_networks(), reason="unshare and ip cannot make networks here")
def test_when_the_network_between_two_hosts_is_cut_the_task_is_done_on_this_side(tmp_path):
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
        import subprocess, sys, time, warnings
        import torch
        from diffopt_dist import RemoteError, auto_init_rpc, get_rank, parallelize, sum_reducer
        from diffopt_dist import remote_sync_call

        @auto_init_rpc(interface=sys.argv[1], rpc_timeout=5.0, shutdown_timeout=5.0)
        def main():
            if get_rank() == 1:
                time.sleep(300)
            x = torch.arange(4.0, requires_grad=True)
            # With retries to spare, for a machine so busy that this side takes its time as well.
            square = parallelize(lambda x: x.square().sum(), reducer=sum_reducer, retries=3)
            loss = square(x)
            subprocess.run(["ip", "link", "set", "near", "down"], check=True)
            begun = time.monotonic()
            loss.backward()
            try:
                remote_sync_call(get_rank, to=1)
            except RemoteError as error:
                assert "no answer came" in str(error), error
            print(x.grad.tolist(), time.monotonic() - begun < 60)

        warnings.simplefilter("ignore")  # that the other has not left in time
        main()
        """)
    )
    command = ["unshare", "-rn", "sh", "-c", HOSTS]
    settings = {"env": {**os.environ, "PYTHON": sys.executable}, "cwd": tmp_path, "timeout": 240}
    found = subprocess.run(command, capture_output=True, text=True, **settings)

    assert found.stdout == "[0.0, 2.0, 4.0, 6.0] True\n", found.stderr
    assert found.returncode == 0, found.stderr
