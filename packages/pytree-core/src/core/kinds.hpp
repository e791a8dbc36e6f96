// Which kind of node an object is.
#pragma once

#include "node.hpp"
#include "registry.hpp"

namespace pytree {

/// The classes of `collections`, found when the module is imported.
struct Collections {
    PyTypeObject *defaultdict;
    PyTypeObject *deque;
};
extern Collections found_collections;
inline const Collections &collections() { return found_collections; }
void find_collections();

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

/// What a type is.
struct Class {
    PyTypeObject *type;
    Kind kind;
    std::uint32_t fields;        // of a NamedTuple
    const Table::Entry *custom;  // of a Custom type, borrowed from the snapshot
};

/// Tells kinds of nodes, and remembers types for the time of one call.
class Classifier {
   public:
    Classifier(Snapshot snapshot, bool none_is_leaf)
        : snapshot_(std::move(snapshot)), none_is_leaf_(none_is_leaf) {}
    Classifier(const Classifier &) = delete;
    Classifier &operator=(const Classifier &) = delete;
    ~Classifier() {
        for (std::size_t i = 0; i < known_; ++i) Py_DECREF(classes_[i].type);
    }

    NB_INLINE Class classify(PyObject *tree) {
        PyTypeObject *type = Py_TYPE(tree);
        if (type == leaf_type_) return {type, Kind::Leaf, 0, nullptr};
        if (type == &PyDict_Type) return {type, Kind::Dict, 0, nullptr};
        if (type == &PyTuple_Type) return {type, Kind::Tuple, 0, nullptr};
        if (type == &PyList_Type) return {type, Kind::List, 0, nullptr};
        Class found = recall(type);
        if (found.kind == Kind::Leaf) leaf_type_ = type;
        // A tuple of another size was made past the constructor of its class.
        bool complete = found.kind != Kind::NamedTuple ||
                        static_cast<std::size_t>(PyTuple_GET_SIZE(tree)) == found.fields;
        if (!complete) found.kind = Kind::Leaf;
        return found;
    }
    /// The type of the last leaf, which objects of this call have kept alive; or null.
    PyTypeObject *leaf_type() const { return leaf_type_; }

   private:
    static constexpr std::size_t kClasses = 16;

    Class recall(PyTypeObject *type) {
        for (std::size_t i = 0; i < known_; ++i) {
            if (classes_[i].type == type) return classes_[i];
        }
        return learn(type);
    }
    Class learn(PyTypeObject *type);
    Class look_up(PyTypeObject *type) const;

    Snapshot snapshot_;
    bool none_is_leaf_;
    PyTypeObject *leaf_type_ = nullptr;
    std::size_t known_ = 0, oldest_ = 0;
    Class classes_[kClasses];
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
