"""Memory of outputs that are gone is used for others, and never that of one that is there."""

import copy
import io
import os
import subprocess
import sys
import threading

import pytest
import torch
from diffopt_kernels import _fused, _native, adam_step
from diffopt_kernels._composed import root_or_zero

LARGE = 1 << 14  # elements of float32: 64 KB, from which on memory is kept
NUMBERS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3}
keeps = _native.kept_limit > 0 and _fused.passes.keeps

pytestmark = pytest.mark.skipif(not keeps, reason="nothing is kept by this build, or this torch")


@pytest.fixture(autouse=True)
def device():
    """Stay on the CPU, whatever else there is."""
    return "cpu"


@pytest.fixture(autouse=True)
def emulation():
    """Leave the CPU's own kernels to it."""
    return False


def columns(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.rand(size, generator=generator) for size in sizes] for _ in range(3)]


def take(grads, m, v):
    return adam_step(grads, m, v, 3, **NUMBERS)


def expected(g, m, v):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    root = root_or_zero(v / (1 - 0.99**3))
    return -0.1 / (1 - 0.9**3) * m / (root + 1e-3), m, v


def test_outputs_take_the_memory_of_those_that_are_gone():
    given = columns(2 * LARGE)
    addresses = {t.data_ptr() for column in take(*given) for t in column}
    assert {t.data_ptr() for column in take(*given) for t in column} == addresses
    assert {t.data_ptr() for column in take(*columns(2 * LARGE - 8)) for t in column} == addresses


def test_the_memory_of_small_outputs_is_not_kept():
    take(*columns(LARGE))
    kept = _native.kept_bytes()
    take(*columns(LARGE - 16))
    assert _native.kept_bytes() == kept


def test_an_output_cannot_be_made_larger():
    for size in (10, LARGE):
        (output,), _, _ = take(*columns(size))
        with pytest.raises(RuntimeError, match="storage that is not resizable"):
            output.resize_(2 * LARGE)


def test_what_is_held_in_any_way_is_not_written_over():
    given, held = columns(10, LARGE, 3 * LARGE), []
    for keep in (
        lambda t: t,
        lambda t: t[5:],
        lambda t: t.view(-1, 2).T,
        lambda t: t.numpy(),
        lambda t: t.untyped_storage(),
        torch.from_dlpack,
        lambda t: t.requires_grad_().square().sum().grad_fn,
    ):
        kept = [[keep(t) for t in column] for column in take(*given)]
        addresses = {t.data_ptr() for c in take(*columns(10, LARGE, 3 * LARGE, seed=1)) for t in c}
        held.append((kept, addresses))
    for i, row in enumerate(zip(*given, strict=True)):
        for k, right in enumerate(expected(*row)):
            whole, rest, turned, array, storage, shared, node = (kept[k][i] for kept, _ in held)
            assert torch.allclose(whole, right, rtol=1e-5)
            assert torch.allclose(rest, right[5:], rtol=1e-5)
            assert torch.allclose(turned, right.view(-1, 2).T, rtol=1e-5)
            assert torch.allclose(torch.from_numpy(array), right, rtol=1e-5)
            assert torch.allclose(torch.tensor([]).set_(storage), right, rtol=1e-5)
            assert torch.allclose(shared, right, rtol=1e-5)
            assert torch.allclose(node.next_functions[0][0]._saved_self, right, rtol=1e-5)


@pytest.mark.parametrize("size", [3, LARGE])
def test_an_output_can_be_copied_pickled_and_shared_between_processes(size):
    output = take(*columns(size))[0][0]
    before, file = output.clone(), io.BytesIO()
    torch.save(output, file)
    file.seek(0)
    assert torch.equal(torch.load(file), before)
    assert torch.equal(copy.deepcopy(output), before)
    assert torch.equal(output.share_memory_(), before)
    assert output.is_shared()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_outputs_are_shaped_as_their_gradients(dtype):
    shapes = (LARGE,), (2, 1, LARGE), (LARGE, 0, 2), (64, 1, 256, 2), (), (0,), (5,), (3, 1, 7)
    for shape in shapes:
        ones = torch.ones(shape, dtype=dtype)
        for (output,) in take([ones], [ones], [ones]):
            assert (output.shape, output.dtype) == (ones.shape, dtype)
            assert output.is_contiguous()
            assert output.stride() == ones.stride()
            assert output.data_ptr() % 64 == 0 or not output.numel()
            assert not output.requires_grad


def test_threads_do_not_get_the_same_memory():
    wrong = []

    def work(seed):
        given = columns(10, LARGE, 2 * LARGE, seed=seed)
        rights = [expected(*row) for row in zip(*given, strict=True)]
        for _ in range(100):
            held = take(*given)
            for row, right in zip(zip(*held, strict=True), rights, strict=True):
                if not all(map(lambda a, b: torch.allclose(a, b, rtol=1e-5), row, right)):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def run(code, **environment):
    setting = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=setting, capture_output=True, text=True, check=False
    )


KEEP = """
import torch
from diffopt_kernels import _native, adam_step
torch.set_num_threads(1)  # a forked child has none of the others, for which torch would wait
for size in ({sizes}):
    ones = [torch.ones(size)]
    adam_step(ones, ones, ones, 1, lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    assert _native.kept_bytes() <= _native.kept_limit, _native.kept_bytes()
print(_native.kept_bytes() >> 20)
"""


@pytest.mark.parametrize(("limit", "kept"), [("0", 0), ("7", 6), ("64", 30)])
def test_no_more_is_kept_than_the_limit(limit, kept):
    sizes = "1 << 18, 3 << 18, 1 << 18, 1 << 19, 1 << 20, 1 << 19"  # 1, 3, 1, 2, 4, 2 MiB, thrice
    done = run(KEEP.format(sizes=sizes), DIFFOPT_KEPT_MIB=limit)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == kept


@pytest.mark.parametrize("limit", ["-1", "many", "1.5"])
def test_a_limit_that_is_no_number_is_refused(limit):
    done = run("import diffopt_kernels", DIFFOPT_KEPT_MIB=limit)
    assert f"DIFFOPT_KEPT_MIB must be a number of mebibytes, 0 to keep no memory, got {limit}." in (
        done.stderr
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_uses_what_was_kept():
    done = run(
        KEEP.format(sizes="1 << 18,")
        + """
import os
child = os.fork()
if not child:
    ones = [torch.ones(1 << 18)]
    moved, m, v = adam_step(ones, ones, ones, 1, lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    right = all(torch.allclose(t, ones[0]) for t in (*m, *v))
    os._exit(0 if right and not _native.kept_bytes() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
