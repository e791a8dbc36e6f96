"""The iterative linear solvers, and how far off they are."""

from diffopt_implicit import solve_bicgstab, solve_cg, solve_gmres, solve_minres, solve_normal_cg

SOLVERS = [solve_cg, solve_normal_cg, solve_minres, solve_gmres, solve_bicgstab]


def relative(x, exact):
    return ((x - exact).norm() / exact.norm()).item()
