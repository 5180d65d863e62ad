"""A layered drawing of a graph: nodes in columns from left to right, edges around what they pass.

An edge that spans several columns is led through a way point in each of them, so that no line runs
behind a box.  Order and height of the nodes follow their neighbors (Sugiyama et al. 1981).
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

BOX_WIDTH, BOX_HEIGHT = 124.0, 46.0  # px
COLUMN_GAP, ROW_GAP = 28.0, 14.0
WAY_HEIGHT = 6.0  # of a way point
SWEEPS = 8  # over all columns; small graphs are settled long before

Node = Hashable
Edge = tuple[Node, Node]


@dataclasses.dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    boxes: dict[Node, tuple[float, float]]  # left and top
    paths: dict[Edge, str]  # the attribute `d` of an SVG path


def draw(columns: Mapping[Node, int], edges: Sequence[Edge]) -> Drawing:
    """`columns`: node -> its column, from 0; every edge leads to a later column."""
    chains = {edge: _chain(edge, columns) for edge in edges}
    grid: list[list[Node]] = [[] for _ in range(max(columns.values(), default=-1) + 1)]
    for node, column in columns.items():
        grid[column].append(node)
    neighbors: dict[Node, list[Node]] = {node: [] for node in columns}
    for (source, _), chain in chains.items():
        for step, point in enumerate(chain[1:-1], start=1):
            grid[columns[source] + step].append(point)
            neighbors[point] = []
        for left, right in zip(chain, chain[1:], strict=False):
            neighbors[left].append(right)
            neighbors[right].append(left)
    tall = {node: BOX_HEIGHT if node in columns else WAY_HEIGHT for node in neighbors}
    middle = _heights(_ordered(grid, neighbors), neighbors, tall)

    top = min((middle[node] - tall[node] / 2 for node in middle), default=0.0)
    middle = {node: y - top for node, y in middle.items()}
    boxes = {
        node: (_left(column), middle[node] - BOX_HEIGHT / 2) for node, column in columns.items()
    }
    paths = {
        edge: _path(columns[edge[0]], [middle[point] for point in chain])
        for edge, chain in chains.items()
    }
    height = max((middle[node] + tall[node] / 2 for node in middle), default=0.0)
    return Drawing(_left(len(grid)) - COLUMN_GAP, height, boxes, paths)


def _left(column: int) -> float:
    return column * (BOX_WIDTH + COLUMN_GAP)


def _chain(edge: Edge, columns: Mapping[Node, int]) -> list[Node]:
    """The edge as source, way points, target."""
    source, target = edge
    between = range(columns[source] + 1, columns[target])
    return [source, *((source, target, column) for column in between), target]


def _ordered(grid: list[list[Node]], neighbors: Mapping[Node, Sequence[Node]]) -> list[list[Node]]:
    """Each column sorted by the mean place of the neighbors in the column before, and then in the
    one after.
    """
    grid = [list(column) for column in grid]
    last = len(grid) - 1
    for _ in range(SWEEPS):
        for column in range(1, last + 1):
            grid[column] = _sorted_by(grid[column], grid[column - 1], neighbors)
        for column in range(last - 1, -1, -1):
            grid[column] = _sorted_by(grid[column], grid[column + 1], neighbors)
    return grid


def _sorted_by(
    column: list[Node], other: list[Node], neighbors: Mapping[Node, Sequence[Node]]
) -> list[Node]:
    place = {node: i / max(len(other) - 1, 1) for i, node in enumerate(other)}
    own = {node: i / max(len(column) - 1, 1) for i, node in enumerate(column)}

    def mean_place(node: Node) -> float:
        places = [place[n] for n in neighbors[node] if n in place]
        return sum(places) / len(places) if places else own[node]

    return sorted(column, key=mean_place)


def _heights(
    grid: list[list[Node]], neighbors: Mapping[Node, Sequence[Node]], tall: Mapping[Node, float]
) -> dict[Node, float]:
    """The middle of each node: near the middle of its neighbors, without overlaps."""
    middle: dict[Node, float] = {}
    for column in grid:
        middle |= _stacked(column, dict.fromkeys(column, 0.0), tall)
    for _ in range(SWEEPS):
        for column in (*grid, *reversed(grid)):
            wanted = {}
            for node in column:
                around = [middle[n] for n in neighbors[node]] or [middle[node]]
                wanted[node] = sum(around) / len(around)
            middle |= _stacked(column, wanted, tall)
    return middle


def _stacked(
    column: Sequence[Node], wanted: Mapping[Node, float], tall: Mapping[Node, float]
) -> dict[Node, float]:
    """The nodes one below the other, each as near to where it is wanted as those above it let it;
    then all of them moved, so that they miss by nothing on average.
    """
    placed: dict[Node, float] = {}
    free = -float("inf")
    for node in column:
        placed[node] = max(wanted[node], free + tall[node] / 2)
        free = placed[node] + tall[node] / 2 + ROW_GAP
    if not placed:
        return {}
    miss = sum(placed[node] - wanted[node] for node in column) / len(column)
    return {node: y - miss for node, y in placed.items()}


def _path(column: int, heights: Sequence[float]) -> str:
    """From the right side of a box through the way points to the left side of another; `heights`
    has one for each column that it touches.
    """
    x, y = _left(column) + BOX_WIDTH, heights[0]
    parts = [f"M{x:g} {y:.1f}"]
    for step, following in enumerate(heights[1:], start=1):
        end = _left(column + step)
        bend = (x + end) / 2
        parts.append(f"C{bend:g} {y:.1f} {bend:g} {following:.1f} {end:g} {following:.1f}")
        x, y = end, following
        if step < len(heights) - 1:
            x += BOX_WIDTH
            parts.append(f"H{x:g}")
    return " ".join(parts)
