// Which types users declared to be nodes, as one call sees it.
#pragma once

#include <unordered_map>

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
};

/// An object taken apart by its flatten function.
struct Parts {
    nb::object children;  // a tuple
    nb::object metadata;
    nb::object entries;  // a tuple of as many, or None for 0, 1, 2, ...
};

/// Calls the flatten function once and checks what it returns.
Parts take_apart(Registration registration, PyObject *tree);

/// All registrations of one namespace at one time. Never changed, only replaced.
class Table {
   public:
    std::unordered_map<PyTypeObject *, nb::object> registrations;
    std::size_t references = 0;  // guarded by the GIL
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

    /// The registration of a type, borrowed, or null.
    PyObject *find(PyTypeObject *type) const {
        if (table_ == nullptr) return nullptr;
        auto found = table_->registrations.find(type);
        return found == table_->registrations.end() ? nullptr : found->second.ptr();
    }

   private:
    Table *table_ = nullptr;
};

/// The registrations that one call sees, whatever its callbacks register meanwhile.
class Snapshot {
   public:
    /// `name` is a string, or null for the global namespace alone.
    explicit Snapshot(PyObject *name);

    PyObject *find(PyTypeObject *type) const {
        PyObject *own = own_.find(type);
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
