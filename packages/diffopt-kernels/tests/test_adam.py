"""Values: against torch.optim, closed forms, and any layout, dtype, size and thread count."""

import pytest
import torch
from diffopt_kernels import adam_step, explain

NUMBERS = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
SHAPES = [(3, 4), (5,), (), (0,), (2, 0, 3), (2, 3, 4, 5), (1,)]


def randoms(shapes=SHAPES, seed=0, dtype=torch.float64):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def zeros(tensors):
    return [torch.zeros_like(t) for t in tensors]


def flat(columns):
    return [t for column in columns for t in column]


def state(seed=0, shapes=SHAPES, dtype=torch.float64):
    """Return gradients, first and second moments, and parameters."""
    g, m, v, p = (randoms(shapes, 10 * seed + k, dtype) for k in range(4))
    return g, m, [x.abs() for x in v], p


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_narrow_number_survives_the_kernel(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    zero = torch.zeros_like(every)
    # With betas of 0 the first moment is the gradient.
    _, (m,), _ = adam_step([every], [zero], [zero], 1, lr=0.0, betas=(0.0, 0.0), eps=1.0)
    assert torch.equal(m.isnan(), every.isnan())
    assert torch.equal(m[~m.isnan()], every[~every.isnan()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_round_to_nearest_even_as_torch_does(on_path, dtype):
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    scale = torch.exp2(torch.randint(-30, 17, (50_000,), generator=generator).float())
    g = (torch.randn(50_000, generator=generator) * scale).to(dtype)
    zero = torch.zeros_like(g)

    def run():
        return adam_step([g], [zero], [zero], 1, lr=0.7, betas=(0.3, 0.6), eps=1e-3)

    for a, b in zip(on_path("fused", run), on_path("composed", run), strict=True):
        same = (a[0] == b[0]) | (a[0].isnan() & b[0].isnan())
        # The few others differ by the float32 rounding of the step, next to a tie.
        assert (~same).float().mean() < 1e-3


def test_tensors_of_several_dtypes_take_one_call(path):
    g = [torch.randn(3, dtype=d) for d in (torch.float32, torch.float64, torch.bfloat16)]
    for column in adam_step(g, zeros(g), zeros(g), 1, **NUMBERS):
        assert [t.dtype for t in column] == [t.dtype for t in g]


def test_float64_numbers_do_not_change_the_dtype_of_a_scalar(path):
    g = [torch.tensor(0.5)]
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    for column in adam_step(g, zeros(g), zeros(g), 1, **{**NUMBERS, "lr": lr}):
        assert column[0].dtype == torch.float32


def test_float32_numbers_are_computed_with_in_float64(on_path):
    g, m, v, _ = state()
    beta = torch.tensor(0.999, requires_grad=True)

    def run():
        return flat(adam_step(g, m, v, 5, lr=0.1, betas=(0.9, beta), eps=1e-8))

    for a, b in zip(on_path("fused", run), on_path("composed", run), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


def test_explain_names_every_reason():
    a, b = torch.zeros(3, device="cpu"), torch.zeros(3, dtype=torch.int64, device="cpu")
    assert explain([a, a]) == "fused: 2 dense CPU tensors of torch.float32"
    assert explain([]) == "neither: there are no tensors"
    assert "`tensors[1]` is torch.int64" in explain([a, b])
    assert "no kernels for torch.int64" in explain([b])
    assert "of layout torch.sparse_coo" in explain([a.to_sparse()])
    assert "not a plain tensor" in explain([torch._neg_view(a)])
    assert "on meta" in explain([a.to("meta")])
    said = []
    torch.func.vmap(lambda x: (said.append(explain([x])), x)[1])(a)
    assert "a function transform of torch.func is active" in said[0]
    with torch.autograd.forward_ad.dual_level():
        assert "forward-mode" in explain([a])
