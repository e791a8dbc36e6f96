"""What `diffopt_zeroorder` exports: each name is imported when it is first asked for."""

from ._decorator import zero_order as zero_order
from ._dice import dice as dice
from ._functional import zero_order_grad as zero_order_grad
from ._guided import Guided as Guided
from ._independent import SPSA as SPSA
from ._independent import Antithetic as Antithetic
from ._independent import Forward as Forward
from ._independent import Naive as Naive
from ._low_rank import LowRank as LowRank
from ._method import Method as Method
from ._module import ZeroOrderModule as ZeroOrderModule
from ._noise import Sampler as Sampler
from ._persistent import NoiseReuseES as NoiseReuseES
from ._persistent import PersistentES as PersistentES
from ._persistent import SingleES as SingleES
from ._perturbed import make_perturbed_argmax as make_perturbed_argmax
from ._perturbed import make_perturbed_fun as make_perturbed_fun
from ._perturbed import make_perturbed_max as make_perturbed_max
from ._seeded import SeededGradient as SeededGradient
from ._seeded import seeded_gradient as seeded_gradient
from ._structured import Central as Central
from ._structured import Orthogonal as Orthogonal
from ._unrolled import UnrolledES as UnrolledES
from ._unrolled import UnrolledEstimate as UnrolledEstimate
from ._unrolled import UnrolledState as UnrolledState

__version__: str
