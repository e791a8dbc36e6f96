// Which kind of node an object is.
#pragma once

#include "node.hpp"
#include "registry.hpp"

namespace pytree {

/// The classes of `collections`, found once when the module is imported.
struct Collections {
    PyTypeObject *defaultdict;
    PyTypeObject *deque;
};
const Collections &collections();

/// Whether `type` is a tuple subclass made by `collections.namedtuple`.
bool is_namedtuple_type(PyTypeObject *type);
/// Whether `type` is a struct sequence that can be made anew.
bool is_struct_sequence_type(PyTypeObject *type);
/// Whether `type` is a subclass of dict that keeps the constructor of dict.
bool is_dict_subclass_type(PyTypeObject *type);
/// The `_fields` of a namedtuple class.
nb::object namedtuple_fields(PyTypeObject *type);
/// How many children each object of a struct sequence type has.
std::size_t struct_sequence_size(PyTypeObject *type);
/// The name of a field of a struct sequence, or its index if it has no name.
nb::object struct_sequence_field(PyTypeObject *type, std::size_t index);

/// What a type is, as far as the type alone tells.
struct Class {
    PyTypeObject *type;
    Kind kind;
    PyObject *registration;  // of a Custom type, borrowed from the snapshot
};

/// Tells kinds of nodes, and remembers types for the time of one call.
class Classifier {
   public:
    Classifier(Snapshot snapshot, bool none_is_leaf)
        : snapshot_(std::move(snapshot)), none_is_leaf_(none_is_leaf) {}
    Classifier(const Classifier &) = delete;
    Classifier &operator=(const Classifier &) = delete;
    ~Classifier() {
        for (const Class &known : known_) Py_XDECREF(known.type);
    }

    Class classify(PyObject *tree) {
        PyTypeObject *type = Py_TYPE(tree);
        if (type == &PyDict_Type) return {type, Kind::Dict, nullptr};
        if (type == &PyTuple_Type) return {type, Kind::Tuple, nullptr};
        if (type == &PyList_Type) return {type, Kind::List, nullptr};
        const Class &known = known_[slot(type)];
        Class found = known.type == type ? known : learn(type);
        if (found.kind == Kind::NamedTuple && !has_all_fields(tree)) found.kind = Kind::Leaf;
        return found;
    }

   private:
    static constexpr std::size_t kSlots = 8;

    static std::size_t slot(PyTypeObject *type) {
        auto address = reinterpret_cast<std::uintptr_t>(type);
        return (address >> 4 ^ address >> 8) % kSlots;
    }
    Class learn(PyTypeObject *type);
    Class look_up(PyTypeObject *type) const;
    static bool has_all_fields(PyObject *tree);

    Snapshot snapshot_;
    bool none_is_leaf_;
    Class known_[kSlots] = {};
};

/// The type of the objects that a node stands for; null for a leaf.
PyTypeObject *type_of(const Node &node);

/// Describes an object as an error names it: "a list of 3", "None", "an int".
nb::object describe(PyObject *tree);
/// Describes a type and a number of children: "a list of 3".
nb::object describe(PyTypeObject *type, std::size_t children);
/// Describes a type: "a list", "an OrderedDict".
nb::object describe_type(PyTypeObject *type);
nb::object qualname(PyTypeObject *type);

}  // namespace pytree
