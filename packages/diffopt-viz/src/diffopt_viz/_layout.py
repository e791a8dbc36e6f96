"""Where to draw the nodes of a graph: rows, order within rows, coordinates.

The method of Sugiyama, Tagawa & Toda (*Methods for visual understanding of hierarchical
system structures*, IEEE Trans. SMC 11, 1981) in its simplest parts: longest paths for the
rows, barycentres against crossings, and least-squares positions without overlap.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SWEEPS = 12  # passes over the rows; the pictures of ours change no more after about ten
GAP = 18.0  # between neighbours in a row, in pixels
ROW_GAP = 34.0  # between rows


@dataclass(frozen=True)
class Layout:
    """Centres of the nodes, and the points that each edge passes through, in pixels."""

    centres: list[tuple[float, float]]
    routes: list[list[tuple[float, float]]]
    width: float
    height: float


def lay_out(sizes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Layout:
    """Place boxes of the given sizes so that all edges run downwards.

    Args:
        sizes: Width and height of each node, in pixels.
        edges: Pairs of node positions; they must not form a cycle.
    """
    row_of = _rows(len(sizes), edges)
    widths = [width for width, _ in sizes]
    chains = []
    # An edge over several rows becomes a chain of unseen nodes, which keep its way free.
    for source, target in edges:
        between = range(row_of[source] + 1, row_of[target])
        chains.append([source, *range(len(row_of), len(row_of) + len(between)), target])
        row_of.extend(between)
        widths.extend([0.0] * len(between))
    above: list[list[int]] = [[] for _ in row_of]
    below: list[list[int]] = [[] for _ in row_of]
    for chain in chains:
        for upper, lower in itertools.pairwise(chain):
            above[lower].append(upper)
            below[upper].append(lower)
    rows: list[list[int]] = [[] for _ in range(max(row_of, default=-1) + 1)]
    for node, row in enumerate(row_of):
        rows[row].append(node)
    _order(rows, above, below)
    x = _across(rows, above, below, widths)
    y, height = _down(rows, [high for _, high in sizes])
    left = min((x[n] - widths[n] / 2 for n in range(len(x))), default=0.0) - GAP
    x = [value - left for value in x]
    width = max((x[n] + widths[n] / 2 for n in range(len(x))), default=0.0) + GAP
    centres = [(x[node], y[row_of[node]]) for node in range(len(sizes))]
    routes = [[(x[node], y[row_of[node]]) for node in chain] for chain in chains]
    return Layout(centres, routes, width, height)


def _rows(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The row of each node: the last one that leaves room for all that follows it."""
    sources: list[list[int]] = [[] for _ in range(count)]
    uses = [0] * count
    for source, target in edges:
        sources[target].append(source)
        uses[source] += 1
    from_end = [0] * count
    ready = [node for node in range(count) if not uses[node]]
    for node in ready:  # grows while it is gone through
        for source in sources[node]:
            from_end[source] = max(from_end[source], from_end[node] + 1)
            uses[source] -= 1
            if not uses[source]:
                ready.append(source)
    last = max(from_end, default=0)
    return [last - distance for distance in from_end]


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Sort each row by the mean position of its neighbours, down and up in turn."""
    position = [0.0] * len(above)
    for row in rows:
        for index, node in enumerate(row):
            position[node] = index

    def barycentre(neighbours: list[list[int]]) -> Callable[[int], float]:
        def mean(node: int) -> float:
            near = neighbours[node]
            return sum(position[n] for n in near) / len(near) if near else position[node]

        return mean

    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        for row in rows if downwards else reversed(rows):
            row.sort(key=barycentre(above if downwards else below))
            for index, node in enumerate(row):
                position[node] = index


def _across(
    rows: list[list[int]], above: list[list[int]], below: list[list[int]], widths: list[float]
) -> list[float]:
    """Horizontal positions: each node as near to its neighbours as its row allows."""
    x = [0.0] * len(widths)
    for row in rows:
        for node, place in zip(row, _spread([0.0] * len(row), row, widths), strict=True):
            x[node] = place
    for sweep in range(SWEEPS):
        neighbours = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wishes = []
            for node in row:
                near = neighbours[node] if sweep < SWEEPS - 2 else above[node] + below[node]
                wishes.append(sum(x[n] for n in near) / len(near) if near else x[node])
            for node, place in zip(row, _spread(wishes, row, widths), strict=True):
                x[node] = place
    return x


def _spread(wishes: list[float], row: list[int], widths: list[float]) -> list[float]:
    """The positions nearest to the wishes, in least squares, that keep order and distance.

    Shifted by the distances that must be kept, the positions need only not decrease: an
    isotonic regression, solved by pooling adjacent violators.
    """
    offsets = [0.0]
    for left, right in itertools.pairwise(row):
        offsets.append(offsets[-1] + (widths[left] + widths[right]) / 2 + GAP)
    pools: list[tuple[float, int]] = []  # mean and number of those that move as one
    for wish, offset in zip(wishes, offsets, strict=False):
        mean, count = wish - offset, 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean = (mean * count + before * many) / (count + many)
            count += many
        pools.append((mean, count))
    means = [mean for mean, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=False)]


def _down(rows: list[list[int]], heights: list[float]) -> tuple[list[float], float]:
    """The vertical centre of each row, and the height of all."""
    centres, bottom = [], ROW_GAP / 2
    for row in rows:
        high = max((heights[node] for node in row if node < len(heights)), default=0.0)
        centres.append(bottom + high / 2)
        bottom += high + ROW_GAP
    return centres, bottom - ROW_GAP / 2
