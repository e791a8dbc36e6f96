// Structures as data for pickle, and back: nothing that is read is trusted.
#include "compare.hpp"
#include "flatten.hpp"
#include "treespec.hpp"

namespace pytree {
namespace {

constexpr long kVersion = 1;

[[noreturn]] void corrupted(const char *what) {
    raise(PyExc_ValueError, "this is not the state of a TreeSpec: %s", what);
}

void require(bool condition, const char *what) {
    if (!condition) corrupted(what);
}

bool is_tuple_of(PyObject *object, Py_ssize_t size) {
    return PyTuple_CheckExact(object) && PyTuple_GET_SIZE(object) == size;
}

PyTypeObject *type_in(PyObject *object) {
    require(PyType_Check(object), "a type is missing");
    return reinterpret_cast<PyTypeObject *>(object);
}

nb::object data_of(const Node &node) {
    switch (node.kind) {
        case Kind::Dict:
        case Kind::OrderedDict:
            return layout_of(node)->inserted_keys();
        case Kind::DictSubclass:
        case Kind::DefaultDict:
            return nb::make_tuple(nb::handle(PyTuple_GET_ITEM(node.data, 0)),
                                  layout_of(node)->inserted_keys());
        case Kind::Custom: {
            Registration registration{PyTuple_GET_ITEM(node.data, 0)};
            return nb::make_tuple(nb::handle(registration.namespace_()),
                                  nb::handle(PyTuple_GET_ITEM(registration.tuple, 0)),
                                  nb::handle(PyTuple_GET_ITEM(node.data, 1)),
                                  nb::handle(PyTuple_GET_ITEM(node.data, 2)));
        }
        default:
            return node.data == nullptr ? nb::none() : nb::borrow(node.data);
    }
}

Kind kind_named(PyObject *name) {
    require(PyUnicode_CheckExact(name), "a kind is not a string");
    for (std::size_t i = 0; i < kKinds; ++i) {
        if (PyUnicode_CompareWithASCIIString(name, kKindNames[i]) == 0) return static_cast<Kind>(i);
    }
    corrupted("a kind is unknown");
}

nb::object read_layout(PyObject *keys, std::size_t arity, bool sorted) {
    require(is_tuple_of(keys, static_cast<Py_ssize_t>(arity)), "a dict has too many or few keys");
    nb::object unique = owned(PyDict_New());
    for (std::size_t i = 0; i < arity; ++i) {
        PyObject *key = PyTuple_GET_ITEM(keys, static_cast<Py_ssize_t>(i));
        if (PyDict_SetItem(unique.ptr(), key, Py_None) < 0) {
            if (!PyErr_ExceptionMatches(PyExc_TypeError)) rethrow();
            PyErr_Clear();
            corrupted("a key cannot be hashed");
        }
    }
    require(static_cast<std::size_t>(PyDict_GET_SIZE(unique.ptr())) == arity,
            "a dict has a key twice");
    return make_layout(PySequence_Fast_ITEMS(keys), arity, sorted);
}

nb::object read_custom(PyObject *data, std::size_t arity) {
    require(is_tuple_of(data, 4) && PyUnicode_Check(PyTuple_GET_ITEM(data, 0)),
            "a registered type is incomplete");
    PyObject *name = PyTuple_GET_ITEM(data, 0), *entries = PyTuple_GET_ITEM(data, 3);
    PyTypeObject *type = type_in(PyTuple_GET_ITEM(data, 1));
    PyObject *registration = find_registration(name, type);
    if (registration == nullptr) {
        raise(PyExc_ValueError, "register %R in the namespace %R before loading a TreeSpec with it",
              type, name);
    }
    require(entries == Py_None || is_tuple_of(entries, static_cast<Py_ssize_t>(arity)),
            "there are too many or few entries");
    return owned(PyTuple_Pack(3, registration, PyTuple_GET_ITEM(data, 2), entries));
}

nb::object read_deque(PyObject *maxlen, std::size_t arity) {
    if (maxlen != Py_None) {
        require(PyLong_CheckExact(maxlen), "the maxlen of a deque is no int");
        Py_ssize_t value = PyLong_AsSsize_t(maxlen);
        if (value == -1 && PyErr_Occurred()) PyErr_Clear();
        require(value >= 0 && static_cast<std::size_t>(value) >= arity,
                "a deque is longer than its maxlen");
    }
    return nb::borrow(maxlen);
}

nb::object read_tuple_type(Kind kind, PyObject *data, std::size_t arity) {
    PyTypeObject *type = type_in(data);
    if (kind == Kind::StructSequence) {
        require(is_struct_sequence_type(type) && struct_sequence_size(type) == arity,
                "a type is no struct sequence of this size");
    } else {
        require(is_namedtuple_type(type), "a type is no namedtuple");
        nb::object fields = namedtuple_fields(type);
        require(is_tuple_of(fields.ptr(), static_cast<Py_ssize_t>(arity)),
                "a namedtuple has another number of fields");
    }
    return nb::borrow(data);
}

/// Checks the data of a node and turns it into what the node holds.
nb::object read_data(Kind kind, PyObject *data, std::size_t arity) {
    auto first = [&] { return PyTuple_GET_ITEM(data, 0); };
    switch (kind) {
        case Kind::Leaf:
        case Kind::None:
            require(arity == 0, "a leaf has children");
            return {};
        case Kind::Tuple:
        case Kind::List:
            return {};
        case Kind::Dict:
        case Kind::OrderedDict:
            return read_layout(data, arity, kind == Kind::Dict);
        case Kind::DictSubclass:
        case Kind::DefaultDict: {
            require(is_tuple_of(data, 2), "the keys of a dict are missing");
            bool valid = kind == Kind::DictSubclass
                             ? is_dict_subclass_type(type_in(first()))
                             : first() == Py_None || PyCallable_Check(first());
            require(valid, "a dict cannot be rebuilt");
            nb::object layout = read_layout(PyTuple_GET_ITEM(data, 1), arity, true);
            return owned(PyTuple_Pack(2, first(), layout.ptr()));
        }
        case Kind::Deque:
            return read_deque(data, arity);
        case Kind::NamedTuple:
        case Kind::StructSequence:
            return read_tuple_type(kind, data, arity);
        case Kind::Custom:
            return read_custom(data, arity);
    }
    corrupted("a kind is unknown");
}

/// Adds one node above the last of the subtrees, whose roots are in `roots`.
void read_node(PyObject *saved, NodeBuffer &nodes, SmallVector<std::uint32_t, 64> &roots) {
    require(is_tuple_of(saved, 3), "a node is not (kind, arity, data)");
    Kind kind = kind_named(PyTuple_GET_ITEM(saved, 0));
    require(PyLong_CheckExact(PyTuple_GET_ITEM(saved, 1)), "an arity is no int");
    Py_ssize_t arity = PyLong_AsSsize_t(PyTuple_GET_ITEM(saved, 1));
    if (arity == -1 && PyErr_Occurred()) PyErr_Clear();
    require(arity >= 0 && static_cast<std::size_t>(arity) <= roots.size(),
            "a node has more children than there are");
    auto size = static_cast<std::size_t>(arity);
    nb::object data = read_data(kind, PyTuple_GET_ITEM(saved, 2), size);
    std::size_t leaves = kind == Kind::Leaf, count = 1;
    for (std::size_t j = 0; j < size; ++j) {
        const Node &child = nodes.view()[roots.pop()];
        leaves += child.num_leaves;
        count += child.num_nodes;
    }
    nodes.push(kind, size, leaves, count, std::move(data));
    roots.push(static_cast<std::uint32_t>(nodes.size() - 1));
}

}  // namespace

nb::object state_of(NodeView nodes) {
    nb::object saved = owned(PyList_New(0));
    for (std::size_t i = 0; i < nodes.size; ++i) {
        nb::object node = nb::make_tuple(kKindNames[static_cast<std::size_t>(nodes[i].kind)],
                                         nodes[i].arity, data_of(nodes[i]));
        checked(PyList_Append(saved.ptr(), node.ptr()));
    }
    return nb::make_tuple(kVersion, owned(PyList_AsTuple(saved.ptr())));
}

nb::object from_state(nb::object state) {
    require(is_tuple_of(state.ptr(), 2), "it is not (version, nodes)");
    nb::object version = nb::borrow(PyTuple_GET_ITEM(state.ptr(), 0));
    require(PyLong_CheckExact(version.ptr()) && version.equal(nb::int_(kVersion)),
            "its version is unknown");
    PyObject *saved = PyTuple_GET_ITEM(state.ptr(), 1);
    require(PyTuple_CheckExact(saved), "its nodes are not a tuple");
    NodeBuffer nodes;
    SmallVector<std::uint32_t, 64> roots;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(saved); ++i) {
        read_node(PyTuple_GET_ITEM(saved, i), nodes, roots);
    }
    require(roots.size() == 1, "its nodes are not one tree");
    check_depth(nodes.view());
    return make_treespec(nodes);
}

}  // namespace pytree
