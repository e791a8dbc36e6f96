from functools import partial

import pytest
import torch
from diffopt_implicit import (
    AndersonAcceleration,
    Broyden,
    FixedPointIteration,
    SolverError,
    SolverWarning,
)
from implicit_problems import normal
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

ONE = torch.ones((), dtype=torch.float64)


def broyden(fixed_point_fun, **options):
    return Broyden(lambda x, *args: tree_minus(x, fixed_point_fun(x, *args)), **options)


def tree_minus(x, y):
    return {k: x[k] - y[k] for k in x} if isinstance(x, dict) else x - y


SOLVERS = [FixedPointIteration, AndersonAcceleration, broyden]
tight = {"tol": 1e-12, "maxiter": 300, "on_failure": "raise"}


def cosine(x, theta):
    return x.cos() + theta


@pytest.mark.parametrize("make", SOLVERS)
@pytest.mark.parametrize(
    ("theta", "x", "slope"),
    [(0.0, 0.7390851332151607, 0.5975100456753034), (torch.pi / 2, torch.pi / 2, 0.5)],
)
def test_cosine_fixed_point(make, theta, x, slope):  # O-38
    # At pi / 2 the slope of T is -1, and undamped iterations oscillate.
    damped = {"damping": 0.5} if make is FixedPointIteration else {}
    solver = make(cosine, **damped, **tight)
    theta = theta * ONE
    assert_close(solver.run(ONE, theta).params, x * ONE, rtol=1e-10, atol=0)
    assert_close(grad(lambda t: solver.run(ONE, t).params)(theta), slope * ONE, rtol=1e-9, atol=0)
    assert_close(
        jvp(lambda t: solver.run(ONE, t).params, (theta,), (ONE,))[1],
        slope * ONE,
        rtol=1e-9,
        atol=0,
    )


@pytest.mark.parametrize("make", SOLVERS)
def test_derivatives_of_both_orders_and_of_the_iterations(make):
    solver = make(cosine, **tight)
    theta = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
    start = torch.ones(2, dtype=torch.float64)
    assert gradcheck(lambda t: solver.run(start, t).params, (theta,), check_forward_ad=True)
    assert gradgradcheck(lambda t: solver.run(start, t).params, (theta,))
    unrolled = make(cosine, adjoint="unroll", **tight)
    ours, theirs = (
        torch.autograd.grad(s.run(start, theta).params.sum(), theta)[0] for s in (solver, unrolled)
    )
    assert_close(ours, theirs, rtol=1e-7, atol=0)


@pytest.mark.parametrize("make", SOLVERS)
def test_affine_maps_of_two_hundred_unknowns(make):  # O-38
    m, b = normal(200, 200), normal(200, seed=1)
    m = 0.45 * m / torch.linalg.matrix_norm(m, 2)
    exact = torch.linalg.solve(torch.eye(200, dtype=torch.float64) - m, b)
    x, state = make(lambda x: m @ x + b, **tight).run(torch.zeros_like(b))
    assert_close(x, exact, rtol=1e-10, atol=1e-10)
    assert state.iter_num.shape == (1,)


ANGLES = [torch.pi / k for k in (2, 3, 4, 5, 6, 1.27, 1.73)]


def rotations(center):
    def turn(x):
        pieces = []
        for i, angle in enumerate(ANGLES):
            c, s = torch.cos(angle * ONE), torch.sin(angle * ONE)
            u, v = x[2 * i] - center[2 * i], x[2 * i + 1] - center[2 * i + 1]
            pieces += [center[2 * i] + c * u - s * v, center[2 * i + 1] + s * u + c * v]
        return torch.stack(pieces)

    return turn


@pytest.mark.parametrize(
    "make",
    [
        partial(AndersonAcceleration, memory=10, ridge=0.0, maxiter=400),
        partial(AndersonAcceleration, memory=20, maxiter=400),
        partial(broyden, memory=60, maxiter=400),
    ],
)
def test_rotations_that_are_no_contraction_converge_to_their_center(make):  # O-39
    center = normal(14)
    x = make(rotations(center), tol=1e-7, on_failure="raise").run(torch.zeros_like(center)).params
    assert (x - center).norm() < 1e-3
    with pytest.raises(SolverError, match="`FixedPointIteration` left 1 of 1 examples"):
        FixedPointIteration(rotations(center), maxiter=400, on_failure="raise").run(
            torch.zeros_like(center)
        )


def test_anderson_is_the_generalized_minimal_residual_on_affine_maps():
    """Without forgetting, the residuals of Anderson's steps are minimal over Krylov spaces."""
    m, b = 0.9 * normal(6, 6) / 3, normal(6, seed=1)
    solver = AndersonAcceleration(lambda x: m @ x + b, memory=6, ridge=0.0, tol=0.0)
    x = torch.zeros_like(b)
    state = solver.init_state(x)
    a = torch.eye(6, dtype=torch.float64) - m
    krylov = [b]
    for _ in range(4):
        x, state = solver.update(x, state)
        if len(krylov) > 1:
            space = torch.stack(krylov[:-1], dim=1)
            best = space @ torch.linalg.lstsq(a @ space, b).solution
            assert_close(x, m @ best + b, rtol=1e-7, atol=1e-9)
        krylov.append(a @ krylov[-1])


def test_anderson_goes_on_by_plain_steps_where_it_is_stuck():
    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    weight, bias = draw(16, 16) / 4 * 1.4, draw(200, 16)  # no contraction
    solver = AndersonAcceleration(
        lambda z: torch.tanh(z @ weight.T + bias), tol=1e-6, maxiter=200, batched=True
    )
    assert (solver.run(torch.zeros_like(bias)).state.error <= 1e-6).all()


@pytest.mark.parametrize("make", SOLVERS)
def test_examples_of_a_batch_stop_on_their_own(make):
    scale = torch.tensor([0.0, 0.1, 0.5, 0.7], dtype=torch.float64)[:, None]
    shift = normal(4, 3)
    layer = lambda z: scale * z.sin() + shift
    z, state = make(layer, batched=True, **tight).run(torch.zeros_like(shift))
    for i in range(4):
        alone, one = make(lambda z, i=i: scale[i] * z.sin() + shift[i], **tight).run(
            torch.zeros(3, dtype=torch.float64)
        )
        assert_close(z[i], alone, rtol=1e-10, atol=1e-12)
        assert state.iter_num[i] == one.iter_num
    counts = state.iter_num.tolist()
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("make", SOLVERS)
def test_vmap_is_the_loop(make):
    solver = make(cosine, **tight)
    thetas = torch.linspace(0, 0.5, 5, dtype=torch.float64)
    slopes = vmap(grad(lambda t: solver.run(ONE, t).params))(thetas)
    loop = torch.stack([grad(lambda t: solver.run(ONE, t).params)(t) for t in thetas])
    assert_close(slopes, loop, rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", SOLVERS)
@pytest.mark.parametrize("batched", [False, True])
def test_points_are_trees(make, batched):
    b = {"u": normal(2, 3), "v": normal(2, 1, 2, seed=1)}

    def step(x):
        return {"u": 0.3 * x["u"].cos() + b["u"], "v": 0.2 * x["u"][:, None, :2] + b["v"]}

    start = {k: torch.zeros_like(t) for k, t in b.items()}
    x = make(step, batched=batched, **tight).run(start).params
    assert_close(step(x), x, rtol=1e-10, atol=1e-10)


def test_failures_are_reported_as_told():
    slow = lambda x: 0.999 * x + 1
    with pytest.warns(SolverWarning, match="of up to .* after 5 iterations, where 1e-05 is asked"):
        FixedPointIteration(slow, maxiter=5).run(ONE)
    with pytest.raises(SolverError, match="`AndersonAcceleration` left 2 of 3 examples") as error:
        AndersonAcceleration(
            lambda x: x + torch.tensor([[0.0], [1.0], [1.0]]),
            batched=True,
            maxiter=3,
            on_failure="raise",
        ).run(torch.zeros(3, 1))
    assert error.value.state.error.shape == (3,)
    FixedPointIteration(slow, maxiter=5, on_failure="ignore").run(ONE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedPointIteration(cosine, damping=1.0), r"`damping` must be in \[0, 1\)"),
        (lambda: FixedPointIteration(cosine, tol=-1.0), "`tol` must be at least 0"),
        (lambda: AndersonAcceleration(cosine, memory=0), "`memory` must be positive"),
        (lambda: AndersonAcceleration(cosine, ridge=-1.0), "`ridge` must be at least 0"),
        (lambda: AndersonAcceleration(cosine, beta=0.0), r"`beta` must be in \(0, 1\], got 0"),
        (lambda: Broyden(cosine, maxiter=0), "`maxiter` must be positive"),
        (lambda: Broyden(cosine, on_failure="shrug"), "`on_failure` must be"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batches_must_have_one_size():
    solver = FixedPointIteration(lambda x: x, batched=True)
    with pytest.raises(ValueError, match=r"must have the same first dimension.*\(2,\), \(3,\)"):
        solver.run((torch.ones(2), torch.ones(3)))


def test_broyden_keeps_the_secant_equation():
    m, b = normal(5, 5) / 4, normal(5, seed=1)
    solver = Broyden(lambda x: x - (m @ x).tanh() - b, tol=0.0)
    x = torch.zeros_like(b)
    state = solver.init_state(x)
    for _ in range(4):
        before, value = x, state.value
        x, state = solver.update(x, state)
        change = (state.value - value)[0]
        inverse = torch.eye(5, dtype=torch.float64) + torch.einsum(
            "mbi,mbj->ij", state.left, state.right
        )
        assert_close(inverse @ change, x - before, rtol=1e-8, atol=1e-11)
