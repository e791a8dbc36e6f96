"""A world of three processes that many tests share, because starting one takes seconds."""

import gc
import queue
import threading
import time
from pathlib import Path

import cloudpickle
import pytest
from diffopt_dist import get_rank, launch
from diffopt_dist._code import dumps

END = "end"


def serve(folder):
    """On rank 0, run what is put into the folder; elsewhere answer calls."""
    folder = Path(folder)
    number = 0
    while get_rank() == 0:
        job = folder / f"job{number}"
        while not job.exists():
            time.sleep(0.01)
        function = cloudpickle.loads(job.read_bytes())
        if function == END:
            return
        try:
            answer = True, function()
        except Exception as error:
            answer = False, error
        write(folder / f"answer{number}", answer)
        del function, answer
        gc.collect()  # of graphs in the cycles of exceptions, which another test may count
        number += 1


def write(path, value):
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(dumps(value))
    unfinished.replace(path)


@pytest.fixture(scope="module")
def on_rank_zero(tmp_path_factory):
    """Run a function on rank 0 of a world of three processes, and return its result."""
    folder, numbers, errors = tmp_path_factory.mktemp("world"), iter(range(10**6)), queue.Queue()

    def hold():
        try:
            launch(serve, 3, (str(folder),), timeout=900.0, roles={"agent": [1, 2]})
        except Exception as error:
            errors.put(error)

    holder = threading.Thread(target=hold)
    holder.start()

    def run(function):
        number = next(numbers)
        write(folder / f"job{number}", function)
        answer = folder / f"answer{number}"
        while not answer.exists():
            if not holder.is_alive():
                raise errors.get()
            time.sleep(0.01)
        succeeded, value = cloudpickle.loads(answer.read_bytes())
        if not succeeded:
            raise value
        return value

    yield run
    write(folder / f"job{next(numbers)}", END)
    holder.join()
    assert errors.empty(), errors.get()
