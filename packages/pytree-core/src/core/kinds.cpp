#include "kinds.hpp"

#include <structmember.h>

namespace pytree {
namespace {

/// An attribute of a type, or null if there is none.
nb::object attribute(PyTypeObject *type, const char *name) {
    PyObject *value = PyObject_GetAttrString(reinterpret_cast<PyObject *>(type), name);
    if (value == nullptr) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) rethrow();
        PyErr_Clear();
    }
    return nb::steal(value);
}

bool has_int(PyTypeObject *type, const char *name) {
    nb::object value = attribute(type, name);
    return value.is_valid() && PyLong_CheckExact(value.ptr());
}

PyTypeObject *import_type(const char *module, const char *name) {
    nb::object type = nb::module_::import_(module).attr(name);
    return reinterpret_cast<PyTypeObject *>(type.release().ptr());
}

/// What a subclass of tuple is, without asking whether that is known.
Class inspect_tuple(PyTypeObject *type) {
    if (is_struct_sequence_type(type)) return {type, Kind::StructSequence, 0, nullptr};
    if (!is_namedtuple_type(type)) return {type, Kind::Leaf, 0, nullptr};
    nb::object fields = namedtuple_fields(type);
    Py_ssize_t size = fields.is_valid() ? PyTuple_GET_SIZE(fields.ptr()) : -1;
    return {type, Kind::NamedTuple, static_cast<std::uint32_t>(size), nullptr};
}

/// The version of a type, which changes with its attributes and which no other type ever has;
/// or 0 if it has none.
unsigned version_of(PyTypeObject *type) {
    // A metaclass of the user may answer differently each time.
    if (Py_TYPE(type) != &PyType_Type) return 0;
    return PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG) ? type->tp_version_tag : 0;
}

/// What a subclass of tuple is, remembered until the type changes.
Class class_of_tuple(PyTypeObject *type) {
    struct Known {
        unsigned version;
        Class cls;
    };
    static Known table[256];
    auto address = reinterpret_cast<std::uintptr_t>(type);
    Known &known = table[(address >> 4 ^ address >> 12) % 256];
    unsigned version = version_of(type);
    if (version != 0 && known.cls.type == type && known.version == version) return known.cls;
    Class found = inspect_tuple(type);  // which looks attributes up, and so gives it a version
    if (version != 0 && version == version_of(type)) known = {version, found};
    return found;
}

}  // namespace

Collections found_collections;

void find_collections() {
    if (found_collections.deque != nullptr) return;  // the module is imported again
    found_collections.defaultdict = import_type("collections", "defaultdict");
    found_collections.deque = import_type("collections", "deque");
}

nb::object namedtuple_fields(PyTypeObject *type) {
    nb::object fields = attribute(type, "_fields");
    bool valid = fields.is_valid() && PyTuple_CheckExact(fields.ptr());
    for (Py_ssize_t i = 0; valid && i < PyTuple_GET_SIZE(fields.ptr()); ++i) {
        valid = PyUnicode_CheckExact(PyTuple_GET_ITEM(fields.ptr(), i));
    }
    return valid ? fields : nb::object();
}

bool is_namedtuple_type(PyTypeObject *type) {
    if (!PyType_IsSubtype(type, &PyTuple_Type) || !namedtuple_fields(type).is_valid()) return false;
    nb::object make = attribute(type, "_make");
    return make.is_valid() && PyCallable_Check(make.ptr());
}

bool is_struct_sequence_type(PyTypeObject *type) {
    return type->tp_base == &PyTuple_Type && !PyType_HasFeature(type, Py_TPFLAGS_BASETYPE) &&
           has_int(type, "n_fields") && has_int(type, "n_sequence_fields") &&
           has_int(type, "n_unnamed_fields") && type->tp_new != nullptr;
}

bool is_dict_subclass_type(PyTypeObject *type) {
    return type != &PyDict_Type && PyType_FastSubclass(type, Py_TPFLAGS_DICT_SUBCLASS) &&
           type->tp_init == PyDict_Type.tp_init && type->tp_new == PyDict_Type.tp_new;
}

std::size_t struct_sequence_size(PyTypeObject *type) {
    nb::object size = attribute(type, "n_sequence_fields");
    std::size_t value = size.is_valid() ? PyLong_AsSize_t(size.ptr()) : 0;
    if (PyErr_Occurred()) rethrow();
    return value;
}

nb::object struct_sequence_field(PyTypeObject *type, std::size_t index) {
    auto offset =
        static_cast<Py_ssize_t>(offsetof(PyTupleObject, ob_item) + index * sizeof(PyObject *));
    for (PyMemberDef *member = type->tp_members; member && member->name; ++member) {
        if (member->offset == offset) return literal(member->name);
    }
    return owned(PyLong_FromSize_t(index));
}

Class Classifier::learn(PyTypeObject *type) {
    Class found = look_up(type);
    Py_INCREF(type);
    if (known_ < kClasses) return classes_[known_++] = found;
    // A type that is forgotten may die, and another one take its address.
    Class before = std::exchange(classes_[oldest_], found);
    oldest_ = (oldest_ + 1) % kClasses;
    if (leaf_type_ == before.type) leaf_type_ = nullptr;
    Py_DECREF(before.type);
    return found;
}

Class Classifier::look_up(PyTypeObject *type) const {
    auto is = [type](Kind kind) { return Class{type, kind, 0, nullptr}; };
    if (auto *entry = snapshot_.find(type)) return {type, Kind::Custom, 0, entry};
    if (PyType_HasFeature(type, Py_TPFLAGS_DICT_SUBCLASS)) {
        if (type == &PyODict_Type) return is(Kind::OrderedDict);
        if (type == collections().defaultdict) return is(Kind::DefaultDict);
        return is(is_dict_subclass_type(type) ? Kind::DictSubclass : Kind::Leaf);
    }
    if (PyType_HasFeature(type, Py_TPFLAGS_TUPLE_SUBCLASS)) return class_of_tuple(type);
    if (type == Py_TYPE(Py_None)) return is(none_is_leaf_ ? Kind::Leaf : Kind::None);
    return is(type == collections().deque ? Kind::Deque : Kind::Leaf);
}

PyTypeObject *type_of(const Node &node) {
    switch (node.kind) {
        case Kind::None:
            return Py_TYPE(Py_None);
        case Kind::Tuple:
            return &PyTuple_Type;
        case Kind::List:
            return &PyList_Type;
        case Kind::Dict:
            return &PyDict_Type;
        case Kind::OrderedDict:
            return &PyODict_Type;
        case Kind::DefaultDict:
            return collections().defaultdict;
        case Kind::Deque:
            return collections().deque;
        case Kind::DictSubclass:
            return reinterpret_cast<PyTypeObject *>(PyTuple_GET_ITEM(node.data, 0));
        case Kind::NamedTuple:
        case Kind::StructSequence:
            return reinterpret_cast<PyTypeObject *>(node.data);
        case Kind::Custom:
            return Registration{PyTuple_GET_ITEM(node.data, 0)}.cls();
        case Kind::Leaf:
            break;
    }
    return nullptr;
}

nb::object qualname(PyTypeObject *type) {
    return owned(PyObject_GetAttrString(reinterpret_cast<PyObject *>(type), "__qualname__"));
}

nb::object describe_type(PyTypeObject *type) {
    nb::object name = qualname(type);
    Py_UCS4 first = PyUnicode_GetLength(name.ptr()) ? PyUnicode_ReadChar(name.ptr(), 0) : 0;
    bool vowel = first != 0 && first < 128 && std::strchr("aeiouAEIOU", static_cast<int>(first));
    return owned(PyUnicode_FromFormat("%s %U", vowel ? "an" : "a", name.ptr()));
}

nb::object describe(PyTypeObject *type, std::size_t children) {
    return owned(PyUnicode_FromFormat("%U of %zu", describe_type(type).ptr(), children));
}

nb::object describe(PyObject *tree) {
    if (tree == Py_None) return literal("None");
    bool sized = PyDict_Check(tree) || PyList_Check(tree) || PyTuple_Check(tree) ||
                 PyObject_TypeCheck(tree, collections().deque);
    if (!sized) return describe_type(Py_TYPE(tree));
    Py_ssize_t size = PyDict_Check(tree) ? PyDict_Size(tree) : PyObject_Size(tree);
    return describe(Py_TYPE(tree), static_cast<std::size_t>(checked(static_cast<int>(size))));
}

}  // namespace pytree
