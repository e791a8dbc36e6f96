"""Implicit differentiation in PyTorch: derivatives of roots, whatever solver found them."""

from importlib.metadata import version

from diffopt_implicit import projections as projections
from diffopt_implicit import proximal as proximal
from diffopt_implicit._bicgstab import solve_bicgstab as solve_bicgstab
from diffopt_implicit._cg import solve_cg as solve_cg
from diffopt_implicit._compiled_hypergradient import CompiledHypergradient as CompiledHypergradient
from diffopt_implicit._compiled_hypergradient import compile_hypergradient as compile_hypergradient
from diffopt_implicit._deq import DEQ as DEQ
from diffopt_implicit._deq import DEQBackward as DEQBackward
from diffopt_implicit._deq import ImplicitBackward as ImplicitBackward
from diffopt_implicit._deq import PhantomGradient as PhantomGradient
from diffopt_implicit._deq import jacobian_penalty as jacobian_penalty
from diffopt_implicit._direct import solve_cholesky as solve_cholesky
from diffopt_implicit._direct import solve_lu as solve_lu
from diffopt_implicit._direct import solve_qr as solve_qr
from diffopt_implicit._first_order_methods import BOME as BOME
from diffopt_implicit._first_order_methods import F2SA as F2SA
from diffopt_implicit._first_order_methods import SAMA as SAMA
from diffopt_implicit._first_order_methods import FiniteDifference as FiniteDifference
from diffopt_implicit._fixed_point import custom_fixed_point as custom_fixed_point
from diffopt_implicit._gmres import solve_gmres as solve_gmres
from diffopt_implicit._heads import matching_probabilities as matching_probabilities
from diffopt_implicit._heads import prototypes as prototypes
from diffopt_implicit._heads import ridge as ridge
from diffopt_implicit._heads import svm as svm
from diffopt_implicit._hypergradient import HypergradientInfo as HypergradientInfo
from diffopt_implicit._hypergradient import hypergradient as hypergradient
from diffopt_implicit._hypergradient_method import HypergradientMethod as HypergradientMethod
from diffopt_implicit._isotonic import isotonic_kl as isotonic_kl
from diffopt_implicit._isotonic import isotonic_l2 as isotonic_l2
from diffopt_implicit._isotonic import soft_rank as soft_rank
from diffopt_implicit._isotonic import soft_sort as soft_sort
from diffopt_implicit._kkt import KKTSolution as KKTSolution
from diffopt_implicit._kkt import kkt_optimality as kkt_optimality
from diffopt_implicit._linear_info import LinearSolveError as LinearSolveError
from diffopt_implicit._linear_info import LinearSolveInfo as LinearSolveInfo
from diffopt_implicit._linear_info import LinearSolveStatus as LinearSolveStatus
from diffopt_implicit._linear_info import LinearSolveWarning as LinearSolveWarning
from diffopt_implicit._minres import solve_minres as solve_minres
from diffopt_implicit._module import ImplicitModule as ImplicitModule
from diffopt_implicit._multilevel._early_stopping import EarlyStopping as EarlyStopping
from diffopt_implicit._multilevel._engine import Engine as Engine
from diffopt_implicit._multilevel._loggers import Logger as Logger
from diffopt_implicit._multilevel._loggers import ProgressBar as ProgressBar
from diffopt_implicit._multilevel._loggers import TensorBoardLogger as TensorBoardLogger
from diffopt_implicit._multilevel._problem import Problem as Problem
from diffopt_implicit._multilevel._unrolled_steps import UnrolledSteps as UnrolledSteps
from diffopt_implicit._normal_cg import solve_normal_cg as solve_normal_cg
from diffopt_implicit._nystrom import solve_nystrom as solve_nystrom
from diffopt_implicit._preconditioners import JacobiPreconditioner as JacobiPreconditioner
from diffopt_implicit._preconditioners import NystromPreconditioner as NystromPreconditioner
from diffopt_implicit._preconditioners import Preconditioner as Preconditioner
from diffopt_implicit._products import root_jvp as root_jvp
from diffopt_implicit._products import root_vjp as root_vjp
from diffopt_implicit._qp_layer import QPLayer as QPLayer
from diffopt_implicit._richardson import solve_fixed_point as solve_fixed_point
from diffopt_implicit._richardson import solve_neumann as solve_neumann
from diffopt_implicit._root import custom_root as custom_root
from diffopt_implicit._root_check import InexactRootError as InexactRootError
from diffopt_implicit._root_check import InexactRootWarning as InexactRootWarning
from diffopt_implicit._sinkhorn import TransportPlan as TransportPlan
from diffopt_implicit._sinkhorn import sinkhorn as sinkhorn
from diffopt_implicit._solved_adjoints import CG as CG
from diffopt_implicit._solved_adjoints import Exact as Exact
from diffopt_implicit._solved_adjoints import NormalCG as NormalCG
from diffopt_implicit._solved_adjoints import Nystrom as Nystrom
from diffopt_implicit._solvers._adjoints import Adjoint as Adjoint
from diffopt_implicit._solvers._adjoints import Checkpoint as Checkpoint
from diffopt_implicit._solvers._adjoints import Implicit as Implicit
from diffopt_implicit._solvers._adjoints import Unroll as Unroll
from diffopt_implicit._solvers._anderson_wrapper import AndersonWrapper as AndersonWrapper
from diffopt_implicit._solvers._backtracking import BacktrackingLineSearch as BacktrackingLineSearch
from diffopt_implicit._solvers._bisection import Bisection as Bisection
from diffopt_implicit._solvers._block_coordinate_descent import (
    BlockCoordinateDescent as BlockCoordinateDescent,
)
from diffopt_implicit._solvers._broyden import Broyden as Broyden
from diffopt_implicit._solvers._equality_qp import EqualityQP as EqualityQP
from diffopt_implicit._solvers._fixed_point_solvers import (
    AndersonAcceleration as AndersonAcceleration,
)
from diffopt_implicit._solvers._fixed_point_solvers import (
    FixedPointIteration as FixedPointIteration,
)
from diffopt_implicit._solvers._hager_zhang import HagerZhangLineSearch as HagerZhangLineSearch
from diffopt_implicit._solvers._lbfgsb import LBFGSB as LBFGSB
from diffopt_implicit._solvers._least_squares import GaussNewton as GaussNewton
from diffopt_implicit._solvers._least_squares import LevenbergMarquardt as LevenbergMarquardt
from diffopt_implicit._solvers._line_search import LineSearch as LineSearch
from diffopt_implicit._solvers._mirror_descent import MirrorDescent as MirrorDescent
from diffopt_implicit._solvers._mirror_descent import MirrorMap as MirrorMap
from diffopt_implicit._solvers._mirror_descent import kl_simplex as kl_simplex
from diffopt_implicit._solvers._nelder_mead import NelderMead as NelderMead
from diffopt_implicit._solvers._newton import Newton as Newton
from diffopt_implicit._solvers._nonlinear_cg import NonlinearCG as NonlinearCG
from diffopt_implicit._solvers._optimizer_solver import OptimizerSolver as OptimizerSolver
from diffopt_implicit._solvers._proximal_gradient import GradientDescent as GradientDescent
from diffopt_implicit._solvers._proximal_gradient import ProjectedGradient as ProjectedGradient
from diffopt_implicit._solvers._proximal_gradient import ProximalGradient as ProximalGradient
from diffopt_implicit._solvers._quasi_newton import BFGS as BFGS
from diffopt_implicit._solvers._quasi_newton import LBFGS as LBFGS
from diffopt_implicit._solvers._scipy_solvers import ScipyBoundedMinimize as ScipyBoundedMinimize
from diffopt_implicit._solvers._scipy_solvers import ScipyLeastSquares as ScipyLeastSquares
from diffopt_implicit._solvers._scipy_solvers import ScipyMinimize as ScipyMinimize
from diffopt_implicit._solvers._scipy_solvers import ScipyRootFinding as ScipyRootFinding
from diffopt_implicit._solvers._solver import Solver as Solver
from diffopt_implicit._solvers._splitting_solvers import OSQP as OSQP
from diffopt_implicit._solvers._splitting_solvers import BoxQP as BoxQP
from diffopt_implicit._solvers._status import SolverError as SolverError
from diffopt_implicit._solvers._status import SolverStatus as SolverStatus
from diffopt_implicit._solvers._status import SolverWarning as SolverWarning
from diffopt_implicit._solvers._step import OptStep as OptStep
from diffopt_implicit._solvers._stochastic import ArmijoSGD as ArmijoSGD
from diffopt_implicit._solvers._stochastic import PolyakSGD as PolyakSGD
from diffopt_implicit._solvers._trust_region import Dogleg as Dogleg
from diffopt_implicit._solvers._trust_region import SteihaugCG as SteihaugCG
from diffopt_implicit._solvers._trust_region import TrustRegion as TrustRegion
from diffopt_implicit._solvers._zoom import ZoomLineSearch as ZoomLineSearch
from diffopt_implicit._stochastic_adjoint import StochasticAdjoint as StochasticAdjoint
from diffopt_implicit._unrolled_adjoints import FixedPoint as FixedPoint
from diffopt_implicit._unrolled_adjoints import IdentityApprox as IdentityApprox
from diffopt_implicit._unrolled_adjoints import Neumann as Neumann
from diffopt_implicit._unrolled_adjoints import OneStep as OneStep
from diffopt_implicit._warm_start import WarmStart as WarmStart

__version__ = version("diffopt-implicit")
