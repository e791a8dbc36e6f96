"""The native part as a guest in a process: threads, forks, instruction sets, how it was built."""

import multiprocessing
import os
import subprocess
import sys
import threading

import diffopt_kernels
import pytest
import torch
from diffopt_kernels import _native, adam_step, build_info
from diffopt_kernels._adagrad import ADAGRAD
from diffopt_kernels._adam import ADAM
from diffopt_kernels._explain import DTYPES, locate
from diffopt_kernels._lion import LION
from diffopt_kernels._nadam import NADAM
from diffopt_kernels._rmsprop import RMSPROP
from diffopt_kernels._sgd import SGD

NUMBERS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3}
NOTHING = torch.zeros(0)


@pytest.fixture(autouse=True)
def device():
    """Stay on the CPU, whatever else there is."""
    return "cpu"


@pytest.fixture(autouse=True)
def emulation():
    """Leave the CPU's own kernels to it."""
    return False


def derivatives(n=100_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(n, generator=generator).requires_grad_()
    lr = torch.tensor(0.1, requires_grad=True)
    (u,), _, (v,) = adam_step([g], [0.1 * g], [g * g], 2, **{**NUMBERS, "lr": lr})
    return [u.detach(), *torch.autograd.grad(u.sum() + v.sum(), (g, lr))]


def test_build_info_tells_what_this_build_has():
    info = build_info()
    assert info["version"] == diffopt_kernels.__version__
    assert info["simd"] in ("baseline", "avx2", "avx512")
    assert isinstance(info["openmp"], bool)
    assert info["compiler"]
    assert isinstance(info["cuda_architectures"], list)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12: fork with threads
def test_a_forked_child_does_not_hang_and_computes_the_same():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = derivatives()  # starts OpenMP's threads
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)

        def child():
            sender.send([x.numpy() for x in _only_ours()])

        process = context.Process(target=child)
        process.start()
        assert receiver.poll(60), "the forked child hangs"
        received = receiver.recv()
        process.join(60)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.from_numpy(received[0]), _only_ours()[0])
    assert len(expected) == 3


def _only_ours():
    # torch's own threaded operations may hang in a forked child, so none of them is used here.
    g = torch.from_numpy(__import__("numpy").linspace(-1, 1, 200_000, dtype="float32"))
    (u,), _, _ = adam_step([g], [g], [g], 2, **{**NUMBERS, "betas": (0.0, 0.0)})
    return [u]


def test_several_python_threads_at_once_compute_the_same():
    expected = [derivatives(seed=k) for k in range(4)]
    found = {}

    def work(k):
        for _ in range(5):
            found[k] = derivatives(seed=k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(4):
        assert all(torch.equal(a, b) for a, b in zip(found[k], expected[k], strict=True))


def test_sums_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            g = torch.linspace(-1, 1, 300_001)
            lr = torch.tensor(0.1, requires_grad=True)
            (u,), _, _ = adam_step([g], [g], [g * g], 2, **{**NUMBERS, "lr": lr})
            found.append(torch.autograd.grad(u.sum(), lr)[0])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_native_rules_are_those_that_python_names():
    rules = {r.name: r for r in (ADAM, ADAGRAD, LION, NADAM, RMSPROP, SGD)}
    assert set(_native.rules) == set(rules)
    for name, (_, hypers, states) in _native.rules.items():
        assert hypers == len(rules[name].numbers)
        assert states == [len(columns) for columns in rules[name].states]


@pytest.mark.parametrize("function", ["forward", "vjp"])
@pytest.mark.parametrize(
    ("place", "wrong"), [(5, 0.1), (5, ["0.1"] * 4), (6, [1.5]), (9, [-1]), (9, ["0"])]
)
def test_native_functions_refuse_what_is_no_number(function, place, wrong):
    found = locate(([NOTHING],) * (1 if function == "forward" else 2), 2)
    rule = _native.rules["sgd"][0]
    arguments = [rule, 0, 0, False, False, [0.1, 0.0, 0.0, 0.0], [1], 0, found, [0], 1]
    arguments[place] = wrong
    with pytest.raises((TypeError, OverflowError)):
        getattr(_native, function)(*arguments)


@pytest.mark.parametrize("function", ["forward", "vjp"])
@pytest.mark.parametrize(
    ("place", "wrong"),
    [(0, 99), (1, -1), (2, 3), (5, [0.1]), (6, [1, 2]), (8, locate(([NOTHING],), 1)),
     (9, [0] * 4)],
)  # fmt: skip
def test_native_functions_refuse_what_would_lead_out_of_bounds(function, place, wrong):
    found = locate(([NOTHING],) * (1 if function == "forward" else 2), 2)
    rule = _native.rules["sgd"][0]
    arguments = [rule, 0, 0, False, False, [0.1, 0.0, 0.0, 0.0], [1], 0, found, [0], 1]
    getattr(_native, function)(*arguments)
    if function == "forward" and place == 8:
        arguments[2] = 1  # the parameters, which weight decay needs, are not among them
    arguments[place] = wrong
    with pytest.raises(ValueError, match=r"unknown code|wrong count"):
        getattr(_native, function)(*arguments)


SCRIPT = """
import torch
import diffopt_kernels as dk
torch.set_num_threads(1)
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(1003, generator=generator).to(dtype).requires_grad_()
    c, s = [g], [g.detach() ** 2]
    decay = {"params": c, "weight_decay": 0.1, "lr": 0.1}
    betas = {"betas": (0.9, 0.99), **decay}
    for outputs in (
        dk.adam_step(c, c, s, 3, eps=1e-3, **betas),
        dk.amsgrad_step(c, c, s, s, 3, eps=1e-3, **betas),
        dk.sgd_step(c, c, 3, momentum=0.9, nesterov=True, **decay),
        dk.rmsprop_step(c, s, s, c, alpha=0.9, eps=1e-3, centered=True, momentum=0.5, **decay),
        dk.adagrad_step(c, s, 3, lr_decay=0.1, eps=1e-3, **decay),
        dk.lion_step(c, c, **betas),
        dk.nadam_step(c, c, s, 0.4, 3, eps=1e-3, **betas)[:3],
    ):
        (grad,) = torch.autograd.grad(sum(c[0].sum() for c in outputs), g)
        for x in (*(c[0] for c in outputs), grad):
            print(hash(tuple(x.tolist())))
print(dk.build_info()["simd"])
"""


def run(level):
    environment = {**os.environ, "DIFFOPT_SIMD": level, "PYTHONHASHSEED": "0"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )


def test_every_instruction_set_gives_the_same_bits():
    best = run("")
    assert best.returncode == 0, best.stderr
    *expected, name = best.stdout.split()
    levels = ["baseline", "avx2", "avx512"]
    for level in levels[: levels.index(name)]:
        *actual, chosen = run(level).stdout.split()
        assert chosen == level
        assert actual == expected


def test_an_unknown_instruction_set_is_refused_at_import():
    result = run("mmx")
    assert result.returncode != 0
    assert "DIFFOPT_SIMD must be one of" in result.stderr


def test_importing_does_not_import_dynamo():
    script = "import sys, diffopt_kernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_steps_are_small_steps_side_by_side(dtype, decoupled):
    # Those that touch more than 32 MB write around the caches.
    n = 5 * 2**20 // dtype.itemsize + 1001
    generator = torch.Generator().manual_seed(0)
    g, m, v, p = (torch.randn(n, generator=generator).to(dtype) for _ in range(4))
    numbers = {**NUMBERS, "weight_decay": 0.1, "decoupled": decoupled}

    def outputs_and_derivatives(arrays):
        g, m, v, p = (x.clone().requires_grad_() for x in arrays)
        (u,), (m_new,), (v_new,) = adam_step([g], [m], [v], 3, params=[p], **numbers)
        cotangents = (u.detach(), g.detach(), p.detach())
        found = torch.autograd.grad((u, m_new, v_new), (g, m, v, p), cotangents)
        return [x.detach() for x in (u, m_new, v_new, *found)]

    arrays = [g, m, v.square(), p]
    whole = outputs_and_derivatives(arrays)
    pieces = [x.split(100_000) for x in arrays]
    parts = [outputs_and_derivatives(piece) for piece in zip(*pieces, strict=True)]
    for x, split in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(x, torch.cat(split))


def test_arrays_may_begin_anywhere():
    n = 2**19
    inputs = torch.rand(3, n)
    found = locate(tuple([x] for x in inputs), 3)
    arguments = (
        _native.rules["adam"][0],
        0,
        0,
        False,
        False,
        [0.1, 0.9, 0.99, 1e-3, 0.0, 0.0],
        [2],
    )
    results = []
    for shift in (0, 1, 7):
        buffers = [torch.full((n + 10,), -9.0) for _ in range(3)]
        written = [x.data_ptr() + 4 * shift for x in buffers]
        _native.forward(*arguments, False, found, written, 1)
        results.append(torch.stack([x[shift : shift + n] for x in buffers]))
        rest = [torch.cat([x[:shift], x[shift + n :]]) for x in buffers]
        assert all((x == -9).all() for x in rest)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    expected, _, _ = adam_step([inputs[0]], [inputs[1]], [inputs[2]], 2, **NUMBERS)
    assert torch.equal(results[0][0], expected[0])
