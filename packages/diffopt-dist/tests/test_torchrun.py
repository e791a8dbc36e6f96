"""Worlds of processes that something else has started, such as torchrun."""

import os
import subprocess
import sys
import textwrap
import time

import pytest
from diffopt_dist import (
    Checkpoint,
    auto_init_rpc,
    launch,
)


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

    assert found.stdout.splitlines()[-1:] == ["[0.0, 2.0, 4.0, 6.0] True"], found.stderr
    assert found.returncode == 0, found.stderr
