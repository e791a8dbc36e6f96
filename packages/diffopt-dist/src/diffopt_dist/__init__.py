"""Differentiable optimization over many processes, on torch.distributed.rpc."""

from importlib.metadata import version

from diffopt_dist import autograd as autograd
from diffopt_dist._call import Call as Call
from diffopt_dist._call import call_all as call_all
from diffopt_dist._call import remote_async_call as remote_async_call
from diffopt_dist._call import remote_sync_call as remote_sync_call
from diffopt_dist._checkpoint import Checkpoint as Checkpoint
from diffopt_dist._collective import average_gradients as average_gradients
from diffopt_dist._collective import seed_rank as seed_rank
from diffopt_dist._dispatch import RemoteError as RemoteError
from diffopt_dist._future import Future as Future
from diffopt_dist._future import as_completed as as_completed
from diffopt_dist._launch import LaunchError as LaunchError
from diffopt_dist._launch import launch as launch
from diffopt_dist._parallel import parallelize as parallelize
from diffopt_dist._parallel import parallelize_async as parallelize_async
from diffopt_dist._partition import Shard as Shard
from diffopt_dist._partition import TensorDimensionPartitioner as TensorDimensionPartitioner
from diffopt_dist._partition import batch_partitioner as batch_partitioner
from diffopt_dist._partition import exclusive_batch_partitioner as exclusive_batch_partitioner
from diffopt_dist._partition import replicate as replicate
from diffopt_dist._reduce import mean_reducer as mean_reducer
from diffopt_dist._reduce import sum_reducer as sum_reducer
from diffopt_dist._torchrun import auto_init_rpc as auto_init_rpc
from diffopt_dist._world import get_local_rank as get_local_rank
from diffopt_dist._world import get_rank as get_rank
from diffopt_dist._world import get_role as get_role
from diffopt_dist._world import get_worker_id as get_worker_id
from diffopt_dist._world import get_world_size as get_world_size
from diffopt_dist._world import is_initialized as is_initialized
from diffopt_dist._world import local_state as local_state
from diffopt_dist._world import not_on_rank as not_on_rank
from diffopt_dist._world import on_rank as on_rank
from diffopt_dist._world import on_role as on_role
from diffopt_dist._world import rank_non_zero_only as rank_non_zero_only
from diffopt_dist._world import rank_zero_only as rank_zero_only

__version__ = version("diffopt-dist")
