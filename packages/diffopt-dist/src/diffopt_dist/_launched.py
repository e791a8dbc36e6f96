"""What a process started by `launch` does."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from queue import SimpleQueue

import cloudpickle
import torch

from diffopt_dist._launch import TOGETHER
from diffopt_dist._world import leave


def main(folder: Path, rank: int) -> None:
    """Join the world, run the function, leave its result or its traceback behind."""
    words: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(words,), daemon=True).start()
    try:
        result = _run(folder, rank)
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)  # its threads may still be answering calls
    unfinished = folder / f"unfinished{rank}"
    unfinished.write_bytes(result)
    unfinished.replace(folder / f"result{rank}")
    together = words.get() == TOGETHER  # other threads answer calls until all have returned
    leave(wait=together)


def _run(folder: Path, rank: int) -> bytes:
    sys.path[:], members, threads, job = cloudpickle.loads((folder / "job").read_bytes())
    if threads is not None:
        torch.set_num_threads(threads)
    members[rank].enter(f"file://{folder / 'rpc'}", f"file://{folder / 'collectives'}")
    fn, args = cloudpickle.loads(job)
    return cloudpickle.dumps(fn(*args))


def _listen(words: SimpleQueue[bytes]) -> None:
    """Pass the parent's word on; end at once when it dies."""
    # Not `sys.stdin`, whose lock must be free when the interpreter ends.
    while word := os.read(0, 1):
        words.put(word)
    os._exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
