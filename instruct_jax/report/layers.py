"""A layered drawing of a graph: nodes in columns from left to right, edges around what they pass.

An edge that spans several columns is led through a way point in each of them, so that no line runs
behind a box.  Order and height of the nodes follow their neighbors (Sugiyama et al. 1981).
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

BOX_WIDTH = 124.0  # px, as all that follow
BOX_HEIGHT = 46.0
WAY_HEIGHT = 6.0  # of a way point
COLUMN_GAP = 28.0
ROW_GAP = 14.0
SWEEPS = 8  # over all columns; small graphs are settled long before

Edge = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    boxes: dict[str, tuple[float, float]]  # left and top
    paths: dict[Edge, str]  # the attribute `d` of an SVG path


@dataclasses.dataclass(eq=False)
class Point:
    """A node or a way point."""

    column: int
    height: float
    neighbors: list["Point"] = dataclasses.field(default_factory=list)
    place: float = 0.0  # in its column, from 0 at the top to 1
    y: float = 0.0  # of its middle

    @property
    def left(self) -> float:
        return self.column * (BOX_WIDTH + COLUMN_GAP)

    @property
    def right(self) -> float:
        return self.left + BOX_WIDTH

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height / 2


Column = list[Point]  # from the top


def draw(columns: Mapping[str, int], edges: Sequence[Edge]) -> Drawing:
    """`columns`: node -> its column, from 0; every edge leads to a later column."""
    nodes = {node: Point(column, BOX_HEIGHT) for node, column in columns.items()}
    points = list(nodes.values())
    chains = {}
    for source, target in edges:
        chain = _chain(nodes[source], nodes[target])
        points += chain[1:-1]
        chains[source, target] = chain
    if not points:
        return Drawing(0.0, 0.0, {}, {})
    last = max(point.column for point in points)
    grid = []
    for column in range(last + 1):
        grid.append([point for point in points if point.column == column])
    _order(grid)
    _settle(grid)

    highest = min(point.top for point in points)
    for point in points:
        point.y -= highest
    return Drawing(
        width=max(point.right for point in points),
        height=max(point.bottom for point in points),
        boxes={node: (point.left, point.top) for node, point in nodes.items()},
        paths={edge: _path(chain) for edge, chain in chains.items()},
    )


def _chain(source: Point, target: Point) -> Column:
    """The edge as source, way points, target, each a neighbor of the next."""
    chain = [source]
    for column in range(source.column + 1, target.column):
        chain.append(Point(column, WAY_HEIGHT))
    chain.append(target)
    for left, right in itertools.pairwise(chain):
        left.neighbors.append(right)
        right.neighbors.append(left)
    return chain


def _order(grid: list[Column]) -> None:
    """Sorts each column by the mean place of the neighbors in the column before it, and then in
    the one after it.
    """
    for column in grid:
        _number(column)
    for _ in range(SWEEPS):
        for column in grid[1:]:
            _sort(column, side=-1)
        for column in reversed(grid[:-1]):
            _sort(column, side=1)


def _number(column: Column) -> None:
    steps = max(len(column) - 1, 1)
    for step, point in enumerate(column):
        point.place = step / steps


def _sort(column: Column, side: int) -> None:
    """By the neighbors on the left (side -1) or on the right (side 1)."""

    def mean_place(point: Point) -> float:
        wanted = point.column + side
        places = [other.place for other in point.neighbors if other.column == wanted]
        if not places:
            return point.place
        return sum(places) / len(places)

    column.sort(key=mean_place)
    _number(column)


def _settle(grid: list[Column]) -> None:
    """Moves each point near to the middle of its neighbors, without overlaps."""
    for column in grid:
        _stack(column, [0.0] * len(column))
    for _ in range(SWEEPS):
        for column in (*grid, *reversed(grid)):
            wanted = []
            for point in column:
                around = [other.y for other in point.neighbors] or [point.y]
                wanted.append(sum(around) / len(around))
            _stack(column, wanted)


def _stack(column: Column, wanted: Sequence[float]) -> None:
    """Places the points one below the other, each as near to where it is wanted as those above it
    let it; then moves all of them, so that they miss by nothing on average.
    """
    if not column:
        return
    free = -float("inf")
    misses = []
    for point, y in zip(column, wanted, strict=True):
        point.y = max(y, free + point.height / 2)
        free = point.bottom + ROW_GAP
        misses.append(point.y - y)
    miss = sum(misses) / len(misses)
    for point in column:
        point.y -= miss


def _path(chain: Column) -> str:
    """From the right side of a box through the way points to the left side of another."""
    first, *_, last = chain
    path = f"M{first.right:g} {first.y:.1f}"
    for start, end in itertools.pairwise(chain):
        bend = (start.right + end.left) / 2
        path += f" C{bend:g} {start.y:.1f}"
        path += f" {bend:g} {end.y:.1f}"
        path += f" {end.left:g} {end.y:.1f}"
        if end is not last:
            path += f" H{end.right:g}"
    return path
