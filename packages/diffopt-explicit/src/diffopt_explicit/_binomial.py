"""Which states of a run to keep, so that its steps can be met again in reverse order.

Source: Griewank & Walther, *Algorithm 799: revolve*, ACM Transactions on Mathematical Software
26, 2000: what is here is optimal, no other choice of snapshots takes fewer steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb


def reversible(slots: int, sweeps: int) -> int:
    """How many steps can be reversed with so many snapshots, taking none more than `sweeps` times.

    Not counted is the last time that a step is taken, to be differentiated.
    """
    return comb(slots + sweeps, slots) if slots >= 0 and sweeps >= 0 else 0


def sweeps(steps: int, slots: int) -> int:
    """The least number of times that steps must be taken to be reversed."""
    least = 0
    while reversible(slots, least) < steps:
        least += 1
    return least


def advances(steps: int, slots: int) -> int:
    """How many steps are taken to be reversed, besides those that are differentiated."""
    if steps <= 1:
        return 0
    times = sweeps(steps, slots)
    return times * steps - reversible(slots + 1, times - 1)


def next_snapshot(steps: int, slots: int) -> int:
    """After how many steps to take a snapshot, of `slots` of which one is of the first state."""
    times = sweeps(steps, slots)
    return max(1, reversible(slots, times - 2), steps - reversible(slots - 1, times))


def snapshots(first: int, last: int, slots: int) -> Iterator[int]:
    """Where to take snapshots on the way from step `first`, of which there is one, to `last`."""
    while slots > 1 and last - first >= 1:
        first += next_snapshot(last - first + 1, slots)
        slots -= 1
        yield first
