"""Problems whose roots and derivatives are known."""

import torch

# scikit-learn's make_regression(n_samples=10, n_features=3, random_state=0)
X = torch.tensor(
    [
        [1.4940790731576061, -0.20515826376580087, 0.33367432737426683],
        [0.4001572083672233, 0.9787379841057392, 1.764052345967664],
        [0.12167501649282841, 0.44386323274542566, 0.7610377251469934],
        [-0.1513572082976979, -0.10321885179355784, 0.9500884175255894],
        [0.144043571160878, 1.454273506962975, 0.41059850193837233],
        [-0.8540957393017248, -2.5529898158340787, 0.31306770165090136],
        [0.8644361988595057, -0.7421650204064419, 0.6536185954403606],
        [1.5327792143584575, 1.469358769900285, -0.1871838500258336],
        [1.8675579901499675, -0.977277879876411, 2.240893199201458],
        [-1.4543656745987648, 0.04575851730144607, 2.2697546239876076],
    ],
    dtype=torch.float64,
)
Y = torch.tensor(
    [
        125.98419291618924,
        228.9520357281227,
        96.0760725869379,
        75.63377087178317,
        100.85361933665021,
        -120.47027794324511,
        93.94272528249134,
        139.66716701591682,
        303.6838479468447,
        116.69110743156308,
    ],
    dtype=torch.float64,
)
RIDGE_W = torch.tensor([16.51390727, 8.20625411, 23.62360791], dtype=torch.float64)
RIDGE_SLOPE = torch.tensor([-2.50171644, -1.26718286, -3.54263662], dtype=torch.float64)
LAM = torch.tensor(5.0, dtype=torch.float64)


def ridge_objective(w, lam, x, y):
    return 0.5 * (x @ w - y).square().mean() + 0.5 * lam * w.square().sum()


ridge_condition = torch.func.grad(ridge_objective)


def ridge_solution(lam, x, y):
    n, d = x.shape
    return torch.linalg.solve(x.T @ x / n + lam * torch.eye(d, dtype=x.dtype), x.T @ y / n)


def cube(w, a):
    return w**3 - a


def newton_cube_root(init, a):
    w = init
    for _ in range(60):
        w = w - (w**3 - a) / (3 * w**2)
    return w


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spd(n, seed=0, dtype=torch.float64):
    q = normal(n, n, seed=seed, dtype=dtype)
    return q @ q.T / n + torch.eye(n, dtype=dtype)
