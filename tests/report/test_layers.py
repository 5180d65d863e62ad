import itertools
import re

from instruct_jax.report.layers import BOX_HEIGHT, BOX_WIDTH, ROW_GAP, draw

COLUMNS = {"a": 0, "b": 1, "c": 1, "d": 2, "e": 3}
EDGES = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("a", "e"), ("d", "e")]


def points(path: str) -> list[tuple[float, float]]:
    """Where a path begins, and where each of its curves ends."""
    begin = re.match(r"M(\S+) (\S+)", path)
    ends = re.findall(r"C\S+ \S+ \S+ \S+ (\S+) (\S+)", path)
    assert begin
    return [(float(x), float(y)) for x, y in [begin.groups(), *ends]]


def test_boxes_of_a_column_do_not_touch():
    drawing = draw(dict.fromkeys("abcdefg", 0), [])
    tops = sorted(top for _, top in drawing.boxes.values())
    for above, below in itertools.pairwise(tops):
        assert below - above >= BOX_HEIGHT + ROW_GAP - 1e-6
    assert tops[0] == 0 and drawing.height == tops[-1] + BOX_HEIGHT
    assert drawing.width == BOX_WIDTH


def test_every_path_joins_the_sides_of_its_boxes():
    drawing = draw(COLUMNS, EDGES)
    for source, target in EDGES:
        begin, *_, end = points(drawing.paths[source, target])
        left, top = drawing.boxes[source]
        assert begin[0] == left + BOX_WIDTH and abs(begin[1] - top - BOX_HEIGHT / 2) < 0.1
        left, top = drawing.boxes[target]
        assert end[0] == left and abs(end[1] - top - BOX_HEIGHT / 2) < 0.1


def test_a_long_edge_passes_no_box():
    drawing = draw(COLUMNS, EDGES)
    inside = points(drawing.paths["a", "e"])[1:-1]
    assert len(inside) == 2  # a way point in each column between
    for x, y in inside:
        for left, top in drawing.boxes.values():
            assert left != x or not top < y < top + BOX_HEIGHT


def test_lines_that_need_not_cross_do_not():
    columns = {"a": 0, "b": 0, "x": 1, "y": 1}
    boxes = draw(columns, [("a", "y"), ("b", "x")]).boxes
    assert (boxes["a"][1] < boxes["b"][1]) == (boxes["y"][1] < boxes["x"][1])


def test_nothing_is_drawn_of_nothing():
    assert draw({}, []).boxes == {}
