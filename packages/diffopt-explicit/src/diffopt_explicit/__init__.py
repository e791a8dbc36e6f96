"""Differentiable optimizers for PyTorch: gradients through the optimization itself."""

from importlib.metadata import version

from diffopt_explicit._adam import Adam as Adam
from diffopt_explicit._adam import AdamState as AdamState
from diffopt_explicit._apply import apply_updates as apply_updates
from diffopt_explicit._chain import Chain as Chain
from diffopt_explicit._chain import chain as chain
from diffopt_explicit._clip import AdaptiveClip as AdaptiveClip
from diffopt_explicit._clip import Clip as Clip
from diffopt_explicit._clip import ClipByGlobalNorm as ClipByGlobalNorm
from diffopt_explicit._clip import adaptive_clip as adaptive_clip
from diffopt_explicit._clip import clip as clip
from diffopt_explicit._clip import clip_by_global_norm as clip_by_global_norm
from diffopt_explicit._decay import AddDecayedWeights as AddDecayedWeights
from diffopt_explicit._decay import add_decayed_weights as add_decayed_weights
from diffopt_explicit._from_torch import from_torch as from_torch
from diffopt_explicit._hyperparameter import Hyperparameter as Hyperparameter
from diffopt_explicit._inner_loop import FunctionalModule as FunctionalModule
from diffopt_explicit._inner_loop import InnerOptimizer as InnerOptimizer
from diffopt_explicit._inner_loop import inner_loop as inner_loop
from diffopt_explicit._meta_optimizer import MetaAdam as MetaAdam
from diffopt_explicit._meta_optimizer import MetaAdamW as MetaAdamW
from diffopt_explicit._meta_optimizer import MetaOptimizer as MetaOptimizer
from diffopt_explicit._meta_optimizer import MetaSGD as MetaSGD
from diffopt_explicit._override import override as override
from diffopt_explicit._partition import Freeze as Freeze
from diffopt_explicit._partition import Partition as Partition
from diffopt_explicit._partition import freeze as freeze
from diffopt_explicit._partition import partition as partition
from diffopt_explicit._recipes import adam as adam
from diffopt_explicit._recipes import adamw as adamw
from diffopt_explicit._recipes import sgd as sgd
from diffopt_explicit._scale import Scale as Scale
from diffopt_explicit._scale import ScaleByLearningRate as ScaleByLearningRate
from diffopt_explicit._scale import scale as scale
from diffopt_explicit._scale import scale_by_learning_rate as scale_by_learning_rate
from diffopt_explicit._schedules import constant as constant
from diffopt_explicit._schedules import cosine_decay as cosine_decay
from diffopt_explicit._schedules import exponential_decay as exponential_decay
from diffopt_explicit._schedules import join as join
from diffopt_explicit._schedules import linear as linear
from diffopt_explicit._schedules import one_cycle as one_cycle
from diffopt_explicit._schedules import piecewise_constant as piecewise_constant
from diffopt_explicit._schedules import polynomial as polynomial
from diffopt_explicit._schedules import warmup_cosine as warmup_cosine
from diffopt_explicit._stepwise import StepState as StepState
from diffopt_explicit._stepwise import Stepwise as Stepwise
from diffopt_explicit._trace import Trace as Trace
from diffopt_explicit._trace import TraceState as TraceState
from diffopt_explicit._trace import trace as trace
from diffopt_explicit._transform import Transform as Transform
from diffopt_explicit._transform import Tree as Tree
from diffopt_explicit._unroll import Store as Store
from diffopt_explicit._unroll import UnrollResult as UnrollResult
from diffopt_explicit._unroll import unroll as unroll

__version__ = version("diffopt-explicit")
