"""Fused differentiable optimizer steps for PyTorch, exact to any order of derivative."""

from importlib.metadata import version as _version

from diffopt_kernels._adagrad import adagrad_step as adagrad_step
from diffopt_kernels._adagrad import adagrad_step_ as adagrad_step_
from diffopt_kernels._adam import adam_step as adam_step
from diffopt_kernels._adam import adam_step_ as adam_step_
from diffopt_kernels._adam import amsgrad_step as amsgrad_step
from diffopt_kernels._adam import amsgrad_step_ as amsgrad_step_
from diffopt_kernels._explain import build_info as build_info
from diffopt_kernels._explain import explain as explain
from diffopt_kernels._lion import lion_step as lion_step
from diffopt_kernels._lion import lion_step_ as lion_step_
from diffopt_kernels._nadam import nadam_step as nadam_step
from diffopt_kernels._nadam import nadam_step_ as nadam_step_
from diffopt_kernels._rmsprop import rmsprop_step as rmsprop_step
from diffopt_kernels._rmsprop import rmsprop_step_ as rmsprop_step_
from diffopt_kernels._sgd import sgd_step as sgd_step
from diffopt_kernels._sgd import sgd_step_ as sgd_step_

__version__ = _version("diffopt-kernels")
