"""Projections: the nearest point of a convex set (or sphere), with the derivative that it has.

Each is differentiable where the projection is, any number of times and under every transform of
`torch.func`. Where it has a kink (a point on the boundary) one of its one-sided derivatives is
given, never NaN: that of staying where one is.

Vectors are the last dimension, and all others are batches, except where trees are taken.
"""

from diffopt_implicit.projections._elementary import affine_set as affine_set
from diffopt_implicit.projections._elementary import box as box
from diffopt_implicit.projections._elementary import halfspace as halfspace
from diffopt_implicit.projections._elementary import hyperplane as hyperplane
from diffopt_implicit.projections._elementary import l1_ball as l1_ball
from diffopt_implicit.projections._elementary import l1_sphere as l1_sphere
from diffopt_implicit.projections._elementary import l2_ball as l2_ball
from diffopt_implicit.projections._elementary import l2_sphere as l2_sphere
from diffopt_implicit.projections._elementary import linf_ball as linf_ball
from diffopt_implicit.projections._elementary import non_negative as non_negative
from diffopt_implicit.projections._elementary import simplex as simplex
from diffopt_implicit.projections._polyhedra import box_section as box_section
from diffopt_implicit.projections._polyhedra import polyhedron as polyhedron
from diffopt_implicit.projections._transport import birkhoff as birkhoff
from diffopt_implicit.projections._transport import kl_birkhoff as kl_birkhoff
from diffopt_implicit.projections._transport import kl_transport as kl_transport
from diffopt_implicit.projections._transport import transport as transport
