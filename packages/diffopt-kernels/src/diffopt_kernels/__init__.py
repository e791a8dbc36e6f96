"""Fused differentiable optimizer steps for PyTorch, exact to any order of derivative."""

from importlib.metadata import version as _version

from diffopt_kernels._adam import adam_step as adam_step
from diffopt_kernels._adam import adam_step_ as adam_step_
from diffopt_kernels._explain import build_info as build_info
from diffopt_kernels._explain import explain as explain

__version__ = _version("diffopt-kernels")
