"""Differentiable optimization over many processes, on torch.distributed.rpc."""

from importlib import metadata

import lazy_loader

# The names stand in __init__.pyi: what is not used costs no time to import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = metadata.version("diffopt-dist")
