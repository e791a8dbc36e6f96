"""Implicit differentiation in PyTorch: derivatives of roots, whatever solver found them."""

from importlib.metadata import version

from diffopt_implicit._cg import solve_cg as solve_cg
from diffopt_implicit._linear_info import LinearSolveError as LinearSolveError
from diffopt_implicit._linear_info import LinearSolveInfo as LinearSolveInfo
from diffopt_implicit._linear_info import LinearSolveStatus as LinearSolveStatus
from diffopt_implicit._linear_info import LinearSolveWarning as LinearSolveWarning
from diffopt_implicit._normal_cg import solve_normal_cg as solve_normal_cg
from diffopt_implicit._products import root_jvp as root_jvp
from diffopt_implicit._products import root_vjp as root_vjp
from diffopt_implicit._root import custom_root as custom_root

__version__ = version("diffopt-implicit")
