#include "paths.hpp"

#include <algorithm>
#include <vector>

#include "key_layout.hpp"
#include "kinds.hpp"

namespace pytree {
namespace {

PyTypeObject *as_type(PyObject *type) { return reinterpret_cast<PyTypeObject *>(type); }

/// The names of the children of a named tuple or registered type; null for 0, 1, 2, ...
nb::object names_of(const Node &node) {
    nb::object names = node.kind == Kind::NamedTuple ? namedtuple_fields(as_type(node.data))
                                                     : nb::borrow(PyTuple_GET_ITEM(node.data, 2));
    bool complete = names.is_valid() && PyTuple_Check(names.ptr()) &&
                    static_cast<std::size_t>(PyTuple_GET_SIZE(names.ptr())) == node.arity;
    return complete ? names : nb::object();
}

/// Whether an entry of this node that is a string is the name of an attribute.
bool has_attributes(const Node &node) {
    if (node.kind == Kind::Custom) {
        Registration registration{PyTuple_GET_ITEM(node.data, 0)};
        return !PyType_IsSubtype(registration.cls(), &PyDict_Type);
    }
    return !is_mapping(node.kind);
}

nb::object spell_step(const Node &node, std::size_t j) {
    nb::object step = entry(node, j);
    bool named = PyUnicode_Check(step.ptr()) && has_attributes(node);
    return owned(PyUnicode_FromFormat(named ? ".%S" : "[%R]", step.ptr()));
}

/// The entries of the children of one node, some of which are looked up once for all.
class Entries {
   public:
    explicit Entries(const Node &node) : node_(node) {
        if (is_mapping(node.kind)) {
            layout_ = layout_of(node);
        } else if (node.kind == Kind::NamedTuple || node.kind == Kind::Custom) {
            names_ = names_of(node);
        }
    }

    nb::object operator[](std::size_t j) const {
        if (layout_ != nullptr) return nb::borrow(layout_->key(j));
        if (names_.is_valid()) {
            return nb::borrow(PyTuple_GET_ITEM(names_.ptr(), static_cast<Py_ssize_t>(j)));
        }
        if (node_.kind == Kind::StructSequence) {
            return struct_sequence_field(as_type(node_.data), j);
        }
        return owned(PyLong_FromSize_t(j));
    }

   private:
    const Node &node_;
    KeyLayout *layout_ = nullptr;
    nb::object names_;
};

/// Walks from right to left, since the root of a subtree is its last node.
void collect_paths(NodeView nodes, std::size_t index, RefVector<32> &path, RefVector<128> &found) {
    const Node &node = nodes[index];
    Entries entries(node);
    for (std::size_t j = node.arity, child = index - 1; j-- > 0; child -= nodes[child].num_nodes) {
        path.push(entries[j]);
        if (nodes[child].kind == Kind::Leaf) {
            found.push(tuple_of(path.data(), path.size()));
        } else {
            collect_paths(nodes, child, path, found);
        }
        path.drop(path.size() - 1);
    }
}

nb::object join(const std::vector<nb::object> &parts) {
    nb::object list = owned(PyList_New(0));
    for (const nb::object &part : parts) checked(PyList_Append(list.ptr(), part.ptr()));
    return owned(PyUnicode_Join(literal(", ").ptr(), list.ptr()));
}

/// Spells a node whose children are spelled already.
nb::object spell_node(const Node &node, std::vector<nb::object> children) {
    auto format = [](const char *text, auto... values) {
        return owned(PyUnicode_FromFormat(text, values...));
    };
    if (is_mapping(node.kind)) {
        KeyLayout *layout = layout_of(node);
        for (std::size_t j = 0; j < children.size(); ++j) {
            children[j] = format("%R: %U", layout->key(j), children[j].ptr());
        }
    }
    if (node.kind == Kind::NamedTuple || node.kind == Kind::StructSequence) {
        for (std::size_t j = 0; j < children.size(); ++j) {
            children[j] = format("%S=%U", entry(node, j).ptr(), children[j].ptr());
        }
    }
    nb::object inside = join(children);
    switch (node.kind) {
        case Kind::Leaf:
            return literal("*");
        case Kind::None:
            return literal("None");
        case Kind::Tuple:
            return format(node.arity == 1 ? "(%U,)" : "(%U)", inside.ptr());
        case Kind::List:
            return format("[%U]", inside.ptr());
        case Kind::Dict:
            return format("{%U}", inside.ptr());
        case Kind::OrderedDict:
            return format("OrderedDict({%U})", inside.ptr());
        case Kind::DefaultDict:
            return format("defaultdict(%R, {%U})", PyTuple_GET_ITEM(node.data, 0), inside.ptr());
        case Kind::DictSubclass:
            return format("%U({%U})", qualname(as_type(PyTuple_GET_ITEM(node.data, 0))).ptr(),
                          inside.ptr());
        case Kind::Deque:
            if (node.data == Py_None) return format("deque([%U])", inside.ptr());
            return format("deque([%U], maxlen=%S)", inside.ptr(), node.data);
        case Kind::NamedTuple:
        case Kind::StructSequence:
            return format("%U(%U)", qualname(as_type(node.data)).ptr(), inside.ptr());
        case Kind::Custom:
            break;
    }
    nb::object name = qualname(Registration{PyTuple_GET_ITEM(node.data, 0)}.cls());
    PyObject *metadata = PyTuple_GET_ITEM(node.data, 1);
    if (metadata == Py_None) return format("%U(%U)", name.ptr(), inside.ptr());
    return format("%U[%R](%U)", name.ptr(), metadata, inside.ptr());
}

}  // namespace

nb::object entry(const Node &node, std::size_t j) { return Entries(node)[j]; }

nb::object entries(const Node &node) {
    Entries entries(node);
    nb::object list = owned(PyList_New(0));
    for (std::size_t j = 0; j < node.arity; ++j) {
        checked(PyList_Append(list.ptr(), entries[j].ptr()));
    }
    return list;
}

void leaf_paths(NodeView nodes, RefVector<128> &found) {
    if (nodes.root().kind == Kind::Leaf) return found.push(nb::tuple());
    RefVector<32> path;
    collect_paths(nodes, nodes.size - 1, path, found);
    std::reverse(found.data(), found.end());
}

nb::object spell_path(NodeView nodes, std::size_t index) {
    nb::object text = literal("");
    for (std::size_t at = nodes.size - 1; at != index;) {
        std::size_t j = nodes[at].arity - 1, child = at - 1;
        // The subtree of `child` is the half-open range (child - num_nodes, child].
        for (; index + nodes[child].num_nodes <= child; --j) child -= nodes[child].num_nodes;
        text = owned(PyUnicode_Concat(text.ptr(), spell_step(nodes[at], j).ptr()));
        at = child;
    }
    return PyUnicode_GetLength(text.ptr()) ? text : literal("the root");
}

nb::object spell(NodeView nodes) {
    std::vector<nb::object> stack;
    for (std::size_t i = 0; i < nodes.size; ++i) {
        auto children = stack.end() - nodes[i].arity;
        nb::object text = spell_node(
            nodes[i], {std::make_move_iterator(children), std::make_move_iterator(stack.end())});
        stack.erase(children, stack.end());
        stack.push_back(std::move(text));
    }
    return stack.back();
}

}  // namespace pytree
