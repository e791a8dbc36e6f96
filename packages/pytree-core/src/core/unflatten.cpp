#include "unflatten.hpp"

#include "key_layout.hpp"
#include "kinds.hpp"

namespace pytree {
namespace {

using Stack = RefVector<64>;

constexpr std::size_t kSmallDict = 10;

/// Moves the children into a new tuple or list, which is complete before anybody sees it.
nb::object move_to_sequence(Stack &stack, std::size_t arity, bool as_list) {
    auto size = static_cast<Py_ssize_t>(arity);
    nb::object sequence = owned(as_list ? PyList_New(size) : PyTuple_New(size));
    std::size_t base = stack.size() - arity;
    std::copy_n(stack.data() + base, arity, PySequence_Fast_ITEMS(sequence.ptr()));
    stack.truncate(base);
    return sequence;
}

/// Fills a dict in the order of insertion. The children stay on the stack.
nb::object fill(nb::object dict, KeyLayout *layout, const Stack &stack) {
    std::size_t size = layout->size(), base = stack.size() - size;
    bool ordered = PyODict_CheckExact(dict.ptr());
    for (std::size_t i = 0; i < size; ++i) {
        PyObject *key = layout->keys()[i], *value = stack[base + layout->rank()[i]];
        checked(ordered ? PyODict_SetItem(dict.ptr(), key, value)
                        : PyDict_SetItem(dict.ptr(), key, value));
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
    nb::object dict;
    switch (node.kind) {
        case Kind::OrderedDict:
            dict = fill(owned(PyODict_New()), layout, stack);
            break;
        case Kind::DefaultDict: {
            auto *type = reinterpret_cast<PyObject *>(collections().defaultdict);
            dict = owned(PyObject_CallOneArg(type, PyTuple_GET_ITEM(node.data, 0)));
            dict = fill(std::move(dict), layout, stack);
            break;
        }
        default:
            dict = fill(new_dict(layout), layout, stack);
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

/// Moves a run of leaves to the stack.
void move_leaves(RefVector<128> &leaves, std::size_t first, std::size_t count, Stack &stack) {
    stack.make_room(count);
    PyObject **from = leaves.data() + first;
    std::copy_n(from, count, stack.end());
    std::fill_n(from, count, nullptr);
    stack.grow(count);
}

}  // namespace

nb::object unflatten(NodeView nodes, RefVector<128> &leaves) {
    Stack stack;
    std::size_t next = 0;
    for (std::size_t i = 0; i < nodes.size; ++i) {
        if (nodes[i].kind == Kind::Leaf) {
            std::size_t count = 1;
            while (i + count < nodes.size && nodes[i + count].kind == Kind::Leaf) ++count;
            move_leaves(leaves, next, count, stack);
            next += count;
            i += count - 1;
        } else {
            stack.push(build(nodes[i], stack));
        }
    }
    return stack.pop();
}

void read_leaves(PyObject *iterable, std::size_t expected, RefVector<128> &leaves) {
    nb::object sequence = owned(PySequence_Fast(iterable, "the leaves must be an iterable"));
    auto size = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence.ptr()));
    if (size != expected) raise(PyExc_ValueError, "expected %zu leaves, got %zu", expected, size);
    push_items(PySequence_Fast_ITEMS(sequence.ptr()), size, leaves);
}

}  // namespace pytree
