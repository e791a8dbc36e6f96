"""Differentiable optimization over many processes, on torch.distributed.rpc."""

from importlib.metadata import version

from diffopt_dist._launch import LaunchError as LaunchError
from diffopt_dist._launch import launch as launch
from diffopt_dist._parallel import Shard as Shard
from diffopt_dist._parallel import batch_partitioner as batch_partitioner
from diffopt_dist._parallel import mean_reducer as mean_reducer
from diffopt_dist._parallel import parallelize as parallelize
from diffopt_dist._parallel import replicate as replicate
from diffopt_dist._parallel import sum_reducer as sum_reducer
from diffopt_dist._remote import Call as Call
from diffopt_dist._remote import RemoteError as RemoteError
from diffopt_dist._remote import call_all as call_all
from diffopt_dist._world import get_rank as get_rank
from diffopt_dist._world import get_world_size as get_world_size
from diffopt_dist._world import is_initialized as is_initialized

__version__ = version("diffopt-dist")
