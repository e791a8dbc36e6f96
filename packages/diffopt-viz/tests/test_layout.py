from diffopt_viz._layout import lay_out
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def acyclic_graphs(draw):
    count = draw(st.integers(1, 25))
    size = st.tuples(st.floats(5, 200), st.floats(5, 60))
    sizes = draw(st.lists(size, min_size=count, max_size=count))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    edges = {(min(pair), max(pair)) for pair in draw(st.lists(pairs, max_size=50))}
    return sizes, sorted(edge for edge in edges if edge[0] != edge[1])


@given(acyclic_graphs())
def test_boxes_lie_inside_do_not_overlap_and_edges_run_down(graph):
    sizes, edges = graph
    layout = lay_out(sizes, edges)
    boxes = [
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        for (w, h), (x, y) in zip(sizes, layout.centres, strict=True)
    ]
    for index, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert top >= 0
        assert right <= layout.width
        assert bottom <= layout.height
        for other_left, other_top, other_right, other_bottom in boxes[:index]:
            apart = right < other_left or other_right < left
            assert apart or bottom < other_top or other_bottom < top
    for (source, target), route in zip(edges, layout.routes, strict=True):
        heights = [y for _, y in route]

        assert boxes[source][3] < boxes[target][1]
        assert heights == sorted(heights)
        assert (route[0], route[-1]) == (layout.centres[source], layout.centres[target])


def test_a_chain_is_a_straight_line():
    layout = lay_out([(50, 10), (100, 10), (20, 10)], [(0, 1), (1, 2)])

    assert len({round(x, 6) for x, _ in layout.centres}) == 1


def test_a_source_stands_just_above_its_first_use():
    layout = lay_out([(10, 10)] * 5, [(0, 1), (1, 2), (2, 3), (4, 3)])

    assert layout.centres[4][1] == layout.centres[2][1]
