"""What `diffopt_dist` exports: each name is imported when it is first asked for."""

from . import autograd as autograd
from ._call import Call as Call
from ._call import call_all as call_all
from ._call import remote_async_call as remote_async_call
from ._call import remote_sync_call as remote_sync_call
from ._checkpoint import Checkpoint as Checkpoint
from ._collective import average_gradients as average_gradients
from ._collective import seed_rank as seed_rank
from ._dispatch import RemoteError as RemoteError
from ._future import Future as Future
from ._future import as_completed as as_completed
from ._launch import LaunchError as LaunchError
from ._launch import launch as launch
from ._parallel import parallelize as parallelize
from ._parallel import parallelize_async as parallelize_async
from ._partition import Shard as Shard
from ._partition import TensorDimensionPartitioner as TensorDimensionPartitioner
from ._partition import batch_partitioner as batch_partitioner
from ._partition import exclusive_batch_partitioner as exclusive_batch_partitioner
from ._partition import replicate as replicate
from ._reduce import mean_reducer as mean_reducer
from ._reduce import sum_reducer as sum_reducer
from ._torchrun import auto_init_rpc as auto_init_rpc
from ._world import get_local_rank as get_local_rank
from ._world import get_rank as get_rank
from ._world import get_role as get_role
from ._world import get_worker_id as get_worker_id
from ._world import get_world_size as get_world_size
from ._world import is_initialized as is_initialized
from ._world import local_state as local_state
from ._world import not_on_rank as not_on_rank
from ._world import on_rank as on_rank
from ._world import on_role as on_role
from ._world import rank_non_zero_only as rank_non_zero_only
from ._world import rank_zero_only as rank_zero_only

__version__: str
