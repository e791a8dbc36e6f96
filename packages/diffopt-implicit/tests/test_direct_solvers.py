import pytest
import torch
from diffopt_implicit import (
    LinearSolveError,
    LinearSolveStatus,
    LinearSolveWarning,
    custom_root,
    solve_cg,
    solve_cholesky,
    solve_lu,
    solve_qr,
)
from implicit_problems import normal, spd
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap
from torch.testing import assert_close

DIRECT = [solve_lu, solve_cholesky, solve_qr]
GENERAL = [solve_lu, solve_qr]


@pytest.mark.parametrize("solve", GENERAL)
@pytest.mark.parametrize("n", [1, 2, 9, 60])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_any_regular_matrix_is_solved(solve, n, scale):  # O-47
    a, b = normal(n, n), normal(n, seed=1)
    x, info = solve(lambda v: a @ v, b * scale, info=True)
    assert_close(x / scale, torch.linalg.solve(a, b), rtol=1e-9, atol=1e-10)
    assert info.converged
    assert info.iterations == 0


@pytest.mark.parametrize("solve", DIRECT)
def test_matrix_right_hand_sides(solve):  # D11
    a, b = spd(4), normal(4, 3, seed=1)
    assert_close(solve(lambda v: a @ v, b), torch.linalg.solve(a, b))


@pytest.mark.parametrize("solve", DIRECT)
def test_coupling_between_leaves_is_not_dropped(solve):  # D13
    a, b = spd(5), normal(5, seed=1)

    def matvec(tree):
        y = a @ torch.cat([tree["w"].reshape(-1), tree["b"].reshape(1)])
        return {"w": y[:4].reshape(2, 2), "b": y[4]}

    x = solve(matvec, {"w": b[:4].reshape(2, 2), "b": b[4]})
    exact = torch.linalg.solve(a, b)
    assert_close(x["w"].reshape(-1), exact[:4])
    assert_close(x["b"], exact[4])


@pytest.mark.parametrize("solve", DIRECT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_kept(solve, dtype):
    a, b = spd(20).to(dtype), normal(20, seed=1).to(dtype)
    x = solve(lambda v: a @ v, b)
    assert x.dtype == dtype
    exact = torch.linalg.solve(a.double(), b.double())
    eps = torch.finfo(dtype).eps
    assert (x.double() - exact).norm() < 30 * eps * exact.norm()


@pytest.mark.parametrize("solve", DIRECT)
def test_empty_and_zero_right_hand_sides(solve):
    assert solve(lambda x: x, ()) == ()
    assert solve(lambda x: x, torch.zeros(0)).shape == (0,)
    assert_close(solve(lambda x: 2 * x, torch.zeros(3)), torch.zeros(3), rtol=0, atol=0)


@pytest.mark.parametrize("solve", DIRECT)
def test_ridge_shifts_the_matrix(solve):
    a, b = spd(5), normal(5, seed=1)
    expected = torch.linalg.solve(a + 0.7 * torch.eye(5, dtype=a.dtype), b)
    for ridge in (0.7, torch.tensor(0.7, dtype=torch.float64)):
        assert_close(solve(lambda v: a @ v, b, ridge=ridge), expected)


@pytest.mark.parametrize("solve", DIRECT)
def test_the_solution_is_differentiable_twice_in_matrix_ridge_and_right_hand_side(solve):
    def solution(q, b, ridge):
        return solve(lambda v: q.T @ (q @ v), b, ridge=ridge)

    inputs = (normal(3, 3), normal(3, seed=1), torch.tensor(0.5, dtype=torch.float64))
    inputs = tuple(t.requires_grad_() for t in inputs)
    assert gradcheck(solution, inputs)
    assert gradgradcheck(solution, inputs)


@pytest.mark.parametrize("solve", DIRECT)
def test_vmap_is_the_loop_and_one_failure_is_counted(solve):
    a, b = torch.stack([spd(4, seed=s) for s in range(3)]), normal(3, 4, seed=9)

    def one(a, b):
        return solve(lambda v: a @ v, b)

    assert_close(vmap(one)(a, b), torch.linalg.solve(a, b))
    a[1] = 0
    with pytest.raises(LinearSolveError, match="failed on 1 of 3 systems"):
        vmap(one)(a, b)


@pytest.mark.parametrize("solve", DIRECT)
def test_roots_are_differentiated_in_every_mode(solve):
    # d condition / dx is [[3u^2, 1], [1, 1]]: symmetric, and positive definite at the root.
    def condition(x, a):
        return {"u": x["u"] ** 3 + x["v"] - a[0], "v": x["v"] + x["u"] - a[1]}

    @custom_root(condition, solve=solve)
    def root(init, a):
        u = torch.ones_like(a[0])
        for _ in range(60):  # u^3 + a1 - u = a0
            u = u - (u**3 - u + a[1] - a[0]) / (3 * u**2 - 1)
        return {"u": u, "v": a[1] - u}

    def both(a):
        x = root(None, a)
        return torch.stack([x["u"], x["v"]])

    a = torch.tensor([8.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(both, (a,), check_forward_ad=True)
    assert gradgradcheck(both, (a,))
    a = a.detach()
    assert_close(jacfwd(both)(a), jacrev(both)(a))
    assert_close(hessian(both)(a), jacrev(jacrev(both))(a))
    assert_close(vmap(jacrev(both))(a.expand(2, 2))[1], jacfwd(both)(a))


@pytest.mark.parametrize("solve", GENERAL)
def test_a_singular_matrix_raises_and_can_be_told_to_warn(solve):
    a, b = torch.diag(torch.tensor([1.0, 0.0])), torch.ones(2)
    with pytest.raises(LinearSolveError, match=f"`{solve.__name__}` failed.*singular matrix"):
        solve(lambda v: a @ v, b)
    with pytest.warns(LinearSolveWarning, match="singular matrix"):
        x = solve(lambda v: a @ v, b, on_failure="warn")
    assert x.isfinite().all()


def test_cholesky_refuses_what_is_not_symmetric_positive_definite():
    indefinite = torch.diag(torch.tensor([1.0, -1.0]))
    asymmetric = torch.tensor([[2.0, 1.0], [0.0, 2.0]])
    for a in (indefinite, asymmetric):
        with pytest.raises(LinearSolveError, match="not positive definite") as failure:
            solve_cholesky(lambda v, a=a: a @ v, torch.ones(2))
        assert failure.value.info.status == LinearSolveStatus.INDEFINITE


@pytest.mark.parametrize("solve", DIRECT)
def test_nan_and_bad_arguments_are_named(solve):
    for bad in (torch.nan, torch.inf):
        with pytest.raises(LinearSolveError, match="NaN or infinity"):
            solve(lambda x, bad=bad: x * bad, torch.ones(2))
        with pytest.raises(LinearSolveError, match="NaN or infinity"):
            solve(lambda x: x, torch.tensor([1.0, bad]))
    with pytest.raises(ValueError, match="The result of `matvec` must have the structure"):
        solve(lambda x: x[:1], torch.ones(2))
    with pytest.raises(TypeError, match="complex"):
        solve(lambda x: x, torch.ones(2, dtype=torch.complex64))


def test_direct_and_iterative_solutions_agree_on_a_network():
    x, y = normal(20, 3), normal(20, 2, seed=1)
    params = {"w": normal(3, 2, seed=2), "b": normal(2, seed=3)}

    def loss(p):
        return torch.tanh(x @ p["w"] + p["b"]).sub(y).square().mean()

    gradient = torch.func.grad(loss)

    def hessian_product(v):
        return torch.func.vjp(gradient, params)[1](v)[0]

    b = gradient(params)
    exact = solve_cg(hessian_product, b, ridge=1.0)
    for solve in DIRECT:
        found = solve(hessian_product, b, ridge=1.0)
        assert_close(found["w"], exact["w"])
        assert_close(found["b"], exact["b"])
