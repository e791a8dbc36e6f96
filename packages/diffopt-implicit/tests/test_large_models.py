"""Hypergradients by first derivatives in what large models are made of."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffopt_implicit import BOME, CG, F2SA, SAMA, Exact, FiniteDifference, OneStep, hypergradient
from implicit_problems import normal
from torch.func import grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

FIRST_ORDER = [F2SA(400, 0.5, 1e3), SAMA(alpha=1e-3), BOME(5, 0.5, eta=2.0), FiniteDifference(1e-3)]
name_of = lambda method: type(method).__name__


class Attention:
    """A regression by attention, each example weighted, near given parameters."""

    def __init__(self, dtype=torch.float64):
        self.data = [normal(20, 4, 6, seed=s).to(dtype) for s in (0, 1)]
        self.target = [normal(20, seed=s).to(dtype) for s in (2, 3)]
        self.near = {
            "qkv": 0.5 * normal(6, 18, seed=4).to(dtype),
            "out": 0.5 * normal(6, seed=5).to(dtype),
        }
        self.weights = normal(20, seed=6).to(dtype)

    def errors(self, params, i):
        q, k, v = (self.data[i] @ params["qkv"]).unflatten(-1, (9, 2)).transpose(1, 2).chunk(3, 1)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return ((mixed @ params["out"]).mean(1) - self.target[i]).square()

    def inner(self, params, weights):
        distance = sum((params[k] - self.near[k]).square().sum() for k in params)
        return (weights.sigmoid() * self.errors(params, 0)).mean() + distance / 2

    def outer(self, params, weights):
        return self.errors(params, 1).mean()

    def minimum(self):
        params = self.near
        for _ in range(100):
            slopes = grad(self.inner)(params, self.weights)
            params = {name: p - 0.5 * slopes[name] for name, p in params.items()}
        return params

    def by(self, method, params):
        # At the minimum there is nothing for the barrier of `BOME` to hold.
        at = self.near if isinstance(method, BOME) else params
        return hypergradient(self.inner, self.outer, at, self.weights, method)


def test_fused_attention_has_first_derivatives_alone():
    problem = Attention()
    params = problem.minimum()
    with pytest.raises(RuntimeError, match=r"attention.*not implemented"):
        problem.by(CG(), params)
    with sdpa_kernel(SDPBackend.MATH):
        exact, one_step = problem.by(Exact(), params), problem.by(OneStep(), params)
        composed = [problem.by(method, params) for method in FIRST_ORDER]
    fused = [problem.by(method, params) for method in FIRST_ORDER]
    assert_close(fused, composed, rtol=1e-6, atol=1e-9)
    f2sa, sama, _, difference = fused
    assert (f2sa - exact).norm() < 1e-2 * exact.norm()
    assert (one_step - exact).norm() > 1e-2 * exact.norm()
    assert_close(sama, one_step, rtol=1e-4, atol=1e-7)
    assert_close(difference, one_step, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "method",
    [F2SA(20, 0.5, 10.0), SAMA(), BOME(5, 0.5, eta=2.0), FiniteDifference(1.0)],
    ids=name_of,
)
def test_losses_may_be_taken_in_bfloat16(method):
    problem = Attention(torch.float32)
    params = problem.minimum()
    exact, whole = problem.by(method, params), problem.errors

    def errors(params, i):
        with torch.autocast("cpu", torch.bfloat16):
            return whole(params, i)

    problem.errors = errors
    found = problem.by(method, params)
    assert not torch.equal(found, exact), "and are"
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            "sharded_hypergradients.py",  # parameters that are shared out
            marks=pytest.mark.skipif(
                torch.__version__ < "2.10", reason="this torch's DTensor has no norms of such parts"
            ),
        ),
        "sharded_modules.py",  # modules by `fully_shard` and `DistributedDataParallel`
    ],
)
def test_parameters_may_be_shared_out_over_processes(tmp_path, program):
    script = Path(__file__).with_name(program)
    command = [sys.executable, "-W", "ignore", str(script)]
    meeting = str(tmp_path / "meeting")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ranks = [subprocess.Popen([*command, str(rank), meeting], **pipes) for rank in range(2)]
    try:
        for rank in ranks:
            said, _ = rank.communicate(timeout=300)
            assert rank.returncode == 0, said
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
