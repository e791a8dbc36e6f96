"""CUDA: what can be told without a GPU, launches of many tensors, and the rest where there is one.

With a GPU every other test runs there, too: see `device` in conftest.py.
"""

import diffopt_kernels as dk
import pytest
import torch
from diffopt_kernels import _native, adam_step, adam_step_, explain
from diffopt_kernels._explain import locate

BUILT = bool(_native.cuda_architectures)
GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU or not BUILT, reason="needs a GPU, and kernels for it")
NUMBERS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3}


@pytest.fixture(autouse=True)
def device():
    """Say in each test where it runs."""
    return "cpu"


@pytest.fixture
def there(emulation):
    """Where the CUDA kernels run."""
    if not emulation and not (BUILT and GPU):
        pytest.skip("needs a GPU, and kernels for it")
    return "cpu" if emulation else "cuda"


def columns(shapes, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    g, m, v = ([torch.randn(s, generator=generator) for s in shapes] for _ in range(3))
    return [[x.to(device, dtype) for x in c] for c in (g, m, [x.square() for x in v])]


def derivatives(g, m, v, lr, **options):
    tensors = [x.detach().requires_grad_() for x in (*g, *m, *v)]
    n = len(g)
    outputs = adam_step(
        tensors[:n], tensors[n : 2 * n], tensors[2 * n :], 3, **{**NUMBERS, "lr": lr, **options}
    )
    flat = [t for column in outputs for t in column]
    total = sum(t.double().square().sum() for t in flat)
    return flat, torch.autograd.grad(total, [*tensors, lr], allow_unused=True)


def test_a_build_with_cuda_imports_and_explains_itself_without_a_gpu(emulation):
    assert dk.build_info()["cuda_architectures"] == [
        name for name in _native.cuda_architectures.split(", ") if name
    ]
    if BUILT and not GPU and not emulation:
        assert _native.cuda_obstacle(0)


@pytest.mark.skipif(not BUILT, reason="built without CUDA")
@pytest.mark.parametrize("function", ["cuda_forward", "cuda_vjp"])
@pytest.mark.parametrize(
    ("place", "wrong"),
    [(0, 99), (5, [0.1]), (9, [0] * 9), (13, [(0, 0, 0)]), (13, [(0, 9, 0)] * 4)],
)
def test_native_functions_refuse_what_would_lead_out_of_bounds(function, place, wrong):
    found = locate(([torch.zeros(0)],) * (1 if function == "cuda_forward" else 2), 2)
    arguments = [_native.rules["sgd"][0], 0, 0, False, False, [0.1, 0.0, 0.0, 0.0], [1], 0, found]
    arguments += [[0], 0, 0, 0, []]
    arguments[place] = wrong
    with pytest.raises(ValueError, match=r"unknown (code|dtype)|wrong count"):
        getattr(_native, function)(*arguments)


@pytest.mark.skipif(not BUILT, reason="built without CUDA")
def test_the_workspace_holds_a_sum_of_each_chunk_and_number():
    alone, chunked = (_native.cuda_workspace_size([n]) for n in (0, 4097))
    assert chunked - alone >= 2 * 8 * (max(n for _, n, _ in _native.rules.values()) + 1)
    assert _native.cuda_workspace_size([0, 0]) == 2 * alone


@pytest.mark.parametrize("count", [150, 4000])  # more than one launch of rows, and of sums
def test_any_number_of_tensors_gives_what_each_gives_alone(there, count):
    shapes = [(k % 5,) for k in range(count)]
    shapes[count // 2] = (9000,)
    rates = torch.linspace(0.05, 0.1, count, device=there).requires_grad_()
    g, m, v = columns(shapes, there)
    outputs, grads = derivatives(g, m, v, rates)
    for i in (0, 1, 2, 3, 4, 99, 140, count // 2, count - 3, count - 1):
        rate = rates[i].detach().requires_grad_()
        alone, of_alone = derivatives(g[i : i + 1], m[i : i + 1], v[i : i + 1], rate)
        for k in range(3):
            assert torch.equal(outputs[k * count + i], alone[k])
            assert torch.equal(grads[k * count + i], of_alone[k])
        torch.testing.assert_close(grads[-1][i], of_alone[-1])


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_what_the_cpu_gives(make_problem, case, dtype):
    def run(device):
        problem = make_problem(case, [(5000,), (3, 7), (), (0,)])
        inputs = [
            x.detach().to(device, dtype if k >= problem.width else x.dtype).requires_grad_()
            for k, x in enumerate(problem.inputs)
        ]
        outputs = problem.step(*inputs)
        weights = [w.to(device, dtype) for w in problem.weights()]
        return [*outputs, *torch.autograd.grad(outputs, inputs, weights)]

    eps = torch.finfo(dtype).eps
    for a, b in zip(run("cuda"), run("cpu"), strict=True):
        assert a.is_cuda
        scale = b.abs().max().item() if b.numel() else 0
        torch.testing.assert_close(a.cpu(), b, rtol=8 * eps, atol=8 * eps * (scale + 1))


@needs_gpu
def test_neither_pass_waits_for_the_gpu():
    g, m, v = columns([(5000,), (3,)], "cuda")
    lr = torch.tensor(0.1, device="cuda", requires_grad=True)
    derivatives(g, m, v, lr)  # the first call asks the driver about the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, grads = derivatives(g, m, v, lr)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert grads[-1].is_cuda


@needs_gpu
def test_a_captured_graph_replays_the_step_with_what_its_inputs_hold_then():
    g, m, v = columns([(5000,), (3,)], "cuda")
    lr = torch.tensor(0.1, device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        derivatives(g, m, v, lr)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs, grads = derivatives(g, m, v, lr)
    with torch.no_grad():
        for x in (*g, *m, lr):
            x.mul_(1.5)
    graph.replay()
    expected, of_expected = derivatives(g, m, v, lr)
    for a, b in zip((*outputs, *grads), (*expected, *of_expected), strict=True):
        assert torch.equal(a, b)


@needs_gpu
def test_the_step_runs_on_the_current_stream():
    stream = torch.cuda.Stream()
    g, m, v = columns([(2**22,)], "cuda")
    expected = adam_step(g, m, v, 3, **NUMBERS)[0][0]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        doubled = [2 * x for x in g]  # not there yet for any other stream
        (u,), _, _ = adam_step([0.5 * x for x in doubled], m, v, 3, **NUMBERS)
    stream.synchronize()
    assert torch.equal(u, expected)


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_alignment_or_tail_matters(there, offset, dtype):
    for size in (1, 2, 3, 7, 8, 9, 255, 4095, 4096, 4097, 8195):
        whole = [c[0] for c in columns([(size + offset,)], there, dtype)]
        parts = [[x[offset:]] for x in whole]
        aligned = [[x[offset:].clone()] for x in whole]
        for a, b in zip(
            adam_step(*parts, 3, **NUMBERS), adam_step(*aligned, 3, **NUMBERS), strict=True
        ):
            assert torch.equal(a[0], b[0])


def test_sums_are_the_same_in_every_run(there):
    g, m, v = columns([(300_001,), (5000,)], there)
    lr = torch.tensor(0.1, device=there, requires_grad=True)
    found = {derivatives(g, m, v, lr)[1][-1].item() for _ in range(5)}
    assert len(found) == 1


@needs_gpu
def test_a_learning_rate_on_the_cpu_gets_its_derivative_there():
    g, m, v = columns([(5000,)], "cuda")
    rates = [torch.tensor(0.1, device=d, requires_grad=True) for d in ("cpu", "cuda")]
    there, here = (derivatives(g, m, v, lr)[1][-1] for lr in rates)
    assert there.device.type == "cpu"
    torch.testing.assert_close(there, here.cpu())


def test_in_place_step_writes_on_the_gpu(there):
    g, m, v = columns([(5000,), (3,)], there)
    p = [torch.zeros_like(x) for x in g]
    updates, *moments = adam_step(g, m, v, 3, **NUMBERS)
    adam_step_(p, g, m, v, 3, **NUMBERS)
    torch.testing.assert_close([*p, *m, *v], [*updates, *moments[0], *moments[1]])


@needs_gpu
def test_explain_names_the_gpu():
    x = torch.zeros(3, device="cuda")
    assert explain([x]) == "fused: 1 dense cuda:0 tensors of torch.float32"
    assert "one call, one device" in explain([x, torch.zeros(3)])


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_step_runs_on_the_device_of_its_tensors():
    g, m, v = columns([(5000,)], "cuda:1")
    (u,), _, _ = adam_step(g, m, v, 3, **NUMBERS)
    assert u.device == g[0].device
    expected = adam_step(*[[c[0].cpu()] for c in (g, m, v)], 3, **NUMBERS)[0][0]
    torch.testing.assert_close(u.cpu(), expected)
