// Which types users declared to be nodes, as one call sees it.
#pragma once

#include <vector>

#include "python.hpp"

namespace pytree {

/// What `pytree_core._registry.Registration` holds, borrowed from that tuple.
struct Registration {
    PyObject *tuple;

    PyTypeObject *cls() const {
        return reinterpret_cast<PyTypeObject *>(PyTuple_GET_ITEM(tuple, 0));
    }
    PyObject *flatten_func() const { return PyTuple_GET_ITEM(tuple, 1); }
    PyObject *unflatten_func() const { return PyTuple_GET_ITEM(tuple, 2); }
    PyObject *namespace_() const { return PyTuple_GET_ITEM(tuple, 3); }
    /// Of a dataclass the names of its subtrees, else null: such a type is taken apart and
    /// rebuilt here, and its functions are not called.
    PyObject *subtrees() const { return fields(0); }
    /// The names of the other fields.
    PyObject *statics() const { return fields(1); }

   private:
    PyObject *fields(Py_ssize_t i) const {
        PyObject *pair = PyTuple_GET_ITEM(tuple, 4);
        return pair == Py_None ? nullptr : PyTuple_GET_ITEM(pair, i);
    }

   public:
    static constexpr Py_ssize_t kSize = 5;
};

/// An object taken apart by its flatten function.
struct Parts {
    nb::object children;  // a tuple
    nb::object metadata;
    nb::object entries;  // a tuple of as many, or None for 0, 1, 2, ...
};

/// Calls the flatten function once and checks what it returns.
Parts take_apart(Registration registration, PyObject *tree);

/// Rebuilds an object.
nb::object put_together(Registration registration, PyObject *metadata, PyObject *children);

/// All registrations of one namespace at one time. Never changed, only replaced.
class Table {
   public:
    /// What is known of a registered type.
    struct Entry {
        PyTypeObject *type = nullptr;
        nb::object registration;
        nb::object plain_data;  // of all nodes of a dataclass without static fields, else null
    };
    std::size_t references = 0;  // guarded by the GIL

    explicit Table(nb::dict registrations);
    const Entry *find(PyTypeObject *type) const {
        for (std::size_t i = place(type);; i = (i + 1) & mask_) {
            if (entries_[i].type == type) return &entries_[i];
            if (entries_[i].type == nullptr) return nullptr;
        }
    }

   private:
    std::size_t place(PyTypeObject *type) const {
        auto address = reinterpret_cast<std::uintptr_t>(type);
        return (address >> 4 ^ address >> 12) & mask_;
    }

    std::size_t mask_;
    std::vector<Entry> entries_;  // hashed by type, at most half full
};

/// A counted reference to a table, or to none.
class TableRef {
   public:
    TableRef() = default;
    explicit TableRef(Table *table) : table_(table) {
        if (table_) ++table_->references;
    }
    TableRef(const TableRef &other) : TableRef(other.table_) {}
    TableRef(TableRef &&other) noexcept : table_(std::exchange(other.table_, nullptr)) {}
    TableRef &operator=(TableRef other) noexcept {
        std::swap(table_, other.table_);
        return *this;
    }
    ~TableRef() {
        if (table_ && --table_->references == 0) delete table_;
    }

    /// What is known of a type, or null.
    const Table::Entry *find(PyTypeObject *type) const {
        return table_ == nullptr ? nullptr : table_->find(type);
    }

    Table *get() const { return table_; }

   private:
    Table *table_ = nullptr;
};

/// The registrations in the global namespace, or null before the first one.
extern Table *global_table;
/// The registrations in a namespace.
TableRef table_named(PyObject *name);

/// The registrations that one call sees, whatever its callbacks register meanwhile.
class Snapshot {
   public:
    /// `name` is a string, or null for the global namespace alone.
    explicit Snapshot(PyObject *name) : global_(global_table) {
        if (name != nullptr) own_ = table_named(name);
    }

    const Table::Entry *find(PyTypeObject *type) const {
        const Table::Entry *own = own_.find(type);
        return own ? own : global_.find(type);
    }

   private:
    TableRef own_, global_;
};

/// The registration of a type in exactly this namespace, or null.
PyObject *find_registration(PyObject *name, PyTypeObject *type);

/// Replaces all registrations of a namespace: a dict from types to tuples.
void publish(nb::str name, nb::dict registrations);

}  // namespace pytree
