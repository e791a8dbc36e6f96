import os
import subprocess
import sys
import textwrap
import time

import pytest
from diffopt_dist import LaunchError, get_rank, get_world_size, launch


def test_each_process_runs_the_function_and_gives_its_result():
    results = launch(lambda base: (base + get_rank(), get_world_size(), os.getpid()), 3, (10,))

    assert [result[:2] for result in results] == [(10, 3), (11, 3), (12, 3)]
    assert len({os.getpid(), *(result[2] for result in results)}) == 4


def test_an_error_in_one_process_is_raised_here_with_its_traceback():
    def fail_on_one():
        if get_rank() == 1:
            raise KeyError("lost")

    with pytest.raises(
        LaunchError, match=r"Rank 1 raised:(.|\n)*fail_on_one(.|\n)*KeyError: 'lost'"
    ):
        launch(fail_on_one, 2)


def test_a_process_that_dies_does_not_leave_the_others():
    def die():
        if get_rank() == 1:
            os.kill(os.getpid(), 9)

    start = time.monotonic()
    with pytest.raises(LaunchError, match="Rank 1 ended by itself, with exit code -9"):
        launch(die, 2)

    assert time.monotonic() - start < 60


def test_the_time_out_ends_all_processes():
    with pytest.raises(LaunchError, match="Rank 0 of 1 was still running after 6 s"):
        launch(lambda: time.sleep(300), 1, timeout=6.0)


def test_a_script_needs_no_guard_and_leaves_no_process_when_it_is_killed(tmp_path):
    script = tmp_path / "script.py"
    pids = tmp_path / "pids"
    script.write_text(
        textwrap.dedent(f"""
        import os, time
        from diffopt_dist import launch

        def work():
            with open({str(pids)!r}, "a") as file:
                file.write(f"{{os.getpid()}}\\n")
            time.sleep(300)

        launch(work, 2)
        """)
    )
    with subprocess.Popen([sys.executable, script]) as process:
        deadline = time.monotonic() + 60
        while not (pids.exists() and pids.read_text().count("\n") == 2):
            assert time.monotonic() < deadline, "the processes did not start"
            time.sleep(0.05)
        process.kill()
    children = [int(line) for line in pids.read_text().split()]
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)

    assert not any(_runs(pid) for pid in children)


def test_less_than_one_process_is_refused():
    with pytest.raises(ValueError, match="`nprocs` must be at least 1, got 0"):
        launch(print, 0)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
