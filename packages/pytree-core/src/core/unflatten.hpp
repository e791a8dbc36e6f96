// From nodes and leaves to a tree.
#pragma once

#include "node.hpp"

namespace pytree {

/// Leaves that belong to somebody else: a list or tuple, which is kept alive.
class GivenLeaves {
   public:
    /// Reads an iterable; throws ValueError unless it has `expected` leaves.
    GivenLeaves(PyObject *iterable, std::size_t expected);

    /// Keeps what is there now, because code of the user is about to run.
    void protect() {
        if (PyList_CheckExact(sequence_.ptr())) sequence_ = owned(PyList_AsTuple(sequence_.ptr()));
    }
    /// The next `count` leaves, borrowed as long as nothing is allocated.
    PyObject *const *peek(std::size_t count) const {
        // Looked up anew each time: the garbage collector may have run a finalizer.
        auto size = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence_.ptr()));
        if (read_ + count > size) refuse_change();
        return PySequence_Fast_ITEMS(sequence_.ptr()) + read_;
    }
    /// Passes by leaves that somebody owns now who has looked at them.
    void skip(std::size_t count) { read_ += count; }
    /// Moves the next leaves to a place that owns them.
    void move(std::size_t count, PyObject **to) {
        PyObject *const *from = peek(count);
        for (std::size_t i = 0; i < count; ++i) to[i] = Py_NewRef(from[i]);
        read_ += count;
    }

   private:
    [[noreturn]] static void refuse_change();

    nb::object sequence_;
    std::size_t read_ = 0;
};

/// Leaves of our own, such as the results of a map.
class OwnedLeaves {
   public:
    explicit OwnedLeaves(RefVector<128> &leaves) : leaves_(leaves) {}
    OwnedLeaves(const OwnedLeaves &) = delete;
    OwnedLeaves &operator=(const OwnedLeaves &) = delete;
    ~OwnedLeaves() {
        leaves_.drop(read_);
        leaves_.truncate(0);
    }

    void protect() {}
    PyObject *const *peek(std::size_t) const { return leaves_.data() + read_; }
    void skip(std::size_t count) {
        for (; count > 0; --count) Py_DECREF(leaves_[read_++]);
    }
    void move(std::size_t count, PyObject **to) {
        std::copy_n(leaves_.data() + read_, count, to);
        read_ += count;
    }

   private:
    RefVector<128> &leaves_;
    std::size_t read_ = 0;
};

/// Builds the tree, of as many leaves as the root says.
nb::object unflatten(NodeView nodes, GivenLeaves leaves);
/// Builds the tree and takes the leaves.
nb::object unflatten(NodeView nodes, RefVector<128> &leaves);

}  // namespace pytree
