#include "unflatten.hpp"

#include "key_layout.hpp"
#include "kinds.hpp"

namespace pytree {
namespace {

using Stack = RefVector<64>;

constexpr std::size_t kSmallDict = 10;

nb::object new_sequence(std::size_t arity, bool as_list) {
    auto size = static_cast<Py_ssize_t>(arity);
    return owned(as_list ? PyList_New(size) : PyTuple_New(size));
}

PyObject **items_of(const nb::object &sequence) { return PySequence_Fast_ITEMS(sequence.ptr()); }

/// Moves the children into a new tuple or list, which is complete before anybody sees it.
nb::object move_to_sequence(Stack &stack, std::size_t arity, bool as_list) {
    nb::object sequence = new_sequence(arity, as_list);
    std::size_t base = stack.size() - arity;
    std::copy_n(stack.data() + base, arity, items_of(sequence));
    stack.truncate(base);
    return sequence;
}

/// Fills a dict in the order of insertion.
nb::object fill(nb::object dict, KeyLayout *layout, PyObject *const *children) {
    bool ordered = PyODict_CheckExact(dict.ptr());
    PyObject **keys = layout->keys();
    std::uint32_t *rank = layout->rank();
    for (std::size_t i = 0, size = layout->size(); i < size; ++i) {
        PyObject *child = children[rank[i]];
        checked(ordered ? PyODict_SetItem(dict.ptr(), keys[i], child)
                        : PyDict_SetItem(dict.ptr(), keys[i], child));
    }
    return dict;
}

/// A dict to be filled. To copy one of the same keys pays for those that would grow twice.
nb::object new_dict(KeyLayout *layout) {
    bool wide = layout->size() > kSmallDict && layout->is_plain();
    return wide ? layout->new_dict() : owned(PyDict_New());
}

nb::object build_mapping(const Node &node, Stack &stack) {
    KeyLayout *layout = layout_of(node);
    PyObject *const *children = stack.end() - node.arity;  // which stay there until all is done
    nb::object dict;
    switch (node.kind) {
        case Kind::OrderedDict:
            dict = fill(owned(PyODict_New()), layout, children);
            break;
        case Kind::DefaultDict: {
            auto *type = reinterpret_cast<PyObject *>(collections().defaultdict);
            dict = owned(PyObject_CallOneArg(type, PyTuple_GET_ITEM(node.data, 0)));
            dict = fill(std::move(dict), layout, children);
            break;
        }
        default:
            dict = fill(new_dict(layout), layout, children);
    }
    if (node.kind == Kind::DictSubclass) {
        dict = owned(PyObject_CallOneArg(PyTuple_GET_ITEM(node.data, 0), dict.ptr()));
    }
    stack.drop(stack.size() - node.arity);
    return dict;
}

nb::object build_deque(nb::object children, PyObject *maxlen) {
    auto *type = reinterpret_cast<PyObject *>(collections().deque);
    return owned(PyObject_CallFunctionObjArgs(type, children.ptr(), maxlen, nullptr));
}

nb::object build_namedtuple(nb::object children, PyObject *type) {
    nb::object arguments = owned(PyTuple_Pack(1, children.ptr()));
    // As `_make` does, and past a constructor that may take something else than the fields.
    return owned(
        PyTuple_Type.tp_new(reinterpret_cast<PyTypeObject *>(type), arguments.ptr(), nullptr));
}

nb::object build_custom(const nb::object &children, PyObject *data) {
    return put_together({PyTuple_GET_ITEM(data, 0)}, PyTuple_GET_ITEM(data, 1), children.ptr());
}

nb::object build(const Node &node, Stack &stack) {
    if (is_mapping(node.kind)) return build_mapping(node, stack);
    if (node.kind == Kind::None) return nb::none();
    nb::object children = move_to_sequence(stack, node.arity, node.kind == Kind::List);
    switch (node.kind) {
        case Kind::Deque:
            return build_deque(std::move(children), node.data);
        case Kind::NamedTuple:
            return build_namedtuple(std::move(children), node.data);
        case Kind::StructSequence:
            return owned(PyObject_CallOneArg(node.data, children.ptr()));
        case Kind::Custom:
            return build_custom(children, node.data);
        default:
            return children;
    }
}

/// How many leaves stand in a row from node `first` on.
std::size_t leaves_in_a_row(NodeView nodes, std::size_t first) {
    std::size_t last = first;
    while (last < nodes.size && nodes[last].kind == Kind::Leaf) ++last;
    return last - first;
}

/// Whether the node is built without any code of the user, and so of leaves where they lie.
bool is_simple(const Node &node) {
    return node.kind == Kind::Tuple || node.kind == Kind::List ||
           (node.kind == Kind::Dict && layout_of(node)->is_plain());
}

/// Builds a simple node of the next leaves.
template <typename Leaves>
nb::object build_of_leaves(const Node &node, Leaves &leaves) {
    if (node.kind == Kind::Dict) {
        KeyLayout *layout = layout_of(node);
        nb::object dict = new_dict(layout);
        dict = fill(std::move(dict), layout, leaves.peek(node.arity));
        leaves.skip(node.arity);
        return dict;
    }
    nb::object sequence = new_sequence(node.arity, node.kind == Kind::List);
    leaves.move(node.arity, items_of(sequence));
    return sequence;
}

template <typename Leaves>
nb::object unflatten_nodes(NodeView nodes, Leaves &leaves) {
    Stack stack;
    for (std::size_t i = 0; i < nodes.size; ++i) {
        std::size_t row = leaves_in_a_row(nodes, i);
        i += row;
        bool below = i < nodes.size && row >= nodes[i].arity && is_simple(nodes[i]);
        if (below) row -= nodes[i].arity;
        stack.make_room(row);
        leaves.move(row, stack.end());
        stack.grow(row);
        if (below) {
            stack.push(build_of_leaves(nodes[i], leaves));
        } else if (i < nodes.size) {
            if (!is_simple(nodes[i]) && nodes[i].kind != Kind::None) leaves.protect();
            stack.push(build(nodes[i], stack));
        }
    }
    return stack.pop();
}

}  // namespace

GivenLeaves::GivenLeaves(PyObject *iterable, std::size_t expected)
    : sequence_(owned(PySequence_Fast(iterable, "the leaves must be an iterable"))) {
    auto size = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence_.ptr()));
    if (size != expected) raise(PyExc_ValueError, "expected %zu leaves, got %zu", expected, size);
}

void GivenLeaves::refuse_change() {
    raise(PyExc_ValueError, "the list of leaves shrank while it was read");
}

nb::object unflatten(NodeView nodes, GivenLeaves leaves) { return unflatten_nodes(nodes, leaves); }

nb::object unflatten(NodeView nodes, RefVector<128> &values) {
    OwnedLeaves leaves(values);
    return unflatten_nodes(nodes, leaves);
}

}  // namespace pytree
