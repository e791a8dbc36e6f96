// Vectors that live on the stack until they grow.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "python.hpp"

namespace pytree {

/// A vector of plain values, the first `N` of them without an allocation.
template <typename T, std::size_t N>
class SmallVector {
    static_assert(std::is_trivially_copyable_v<T>);

   public:
    SmallVector() = default;
    SmallVector(const SmallVector &) = delete;
    SmallVector &operator=(const SmallVector &) = delete;
    ~SmallVector() {
        if (data_ != local_) std::free(data_);
    }

    void push(T value) {
        if (size_ == capacity_) reserve(2 * capacity_);
        data_[size_++] = value;
    }

    void reserve(std::size_t capacity) {
        if (capacity <= capacity_) return;
        // A block on the heap most often grows where it is, without a copy.
        void *grown = std::realloc(data_ == local_ ? nullptr : data_, capacity * sizeof(T));
        if (grown == nullptr) throw std::bad_alloc();
        if (data_ == local_) std::memcpy(grown, local_, size_ * sizeof(T));
        data_ = static_cast<T *>(grown);
        capacity_ = capacity;
    }

    /// Makes sure that `count` more values fit.
    void make_room(std::size_t count) {
        if (count > capacity_ - size_) reserve(std::max(size_ + count, 2 * capacity_));
    }
    /// Takes values into account that were written behind the last one.
    void grow(std::size_t count) { size_ += count; }

    T pop() { return data_[--size_]; }
    /// Forgets all values from `size` on.
    void truncate(std::size_t size) { size_ = size; }

    T &operator[](std::size_t i) { return data_[i]; }
    const T &operator[](std::size_t i) const { return data_[i]; }
    T *data() { return data_; }
    const T *data() const { return data_; }
    /// Behind the last value.
    T *end() { return data_ + size_; }
    std::size_t size() const { return size_; }

   private:
    T local_[N];
    T *data_ = local_;
    std::size_t size_ = 0;
    std::size_t capacity_ = N;
};

/// A vector that owns references to Python objects.
template <std::size_t N>
class RefVector : public SmallVector<PyObject *, N> {
    using Base = SmallVector<PyObject *, N>;

   public:
    ~RefVector() { drop(0); }

    void push(nb::object value) {
        Base::push(value.ptr());  // may throw, and then `value` is still owned
        value.release();
    }
    nb::object pop() { return nb::steal(Base::pop()); }
    /// Takes the value at `i` out, leaving nothing there.
    nb::object take(std::size_t i) { return nb::steal(std::exchange((*this)[i], nullptr)); }
    /// Releases all values from `size` on.
    void drop(std::size_t size) {
        // A destructor of Python may run at each release, so the vector is shortened before.
        while (Base::size() > size) Py_XDECREF(Base::pop());
    }
};

/// Adds values that somebody else owns too.
template <std::size_t N>
void push_items(PyObject *const *items, std::size_t count, RefVector<N> &values) {
    values.make_room(count);
    PyObject **end = values.end();
    for (std::size_t i = 0; i < count; ++i) {
        Py_INCREF(items[i]);
        end[i] = items[i];
    }
    values.grow(count);
}

/// Moves all values into a list.
template <std::size_t N>
nb::object take_list(RefVector<N> &values) {
    nb::object list = owned(PyList_New(static_cast<Py_ssize_t>(values.size())));
    std::copy_n(values.data(), values.size(),
                reinterpret_cast<PyListObject *>(list.ptr())->ob_item);
    values.truncate(0);
    return list;
}

/// Moves all values into a tuple, which is complete before anybody sees it.
template <std::size_t N>
nb::object take_tuple(RefVector<N> &values) {
    nb::object tuple = owned(PyTuple_New(static_cast<Py_ssize_t>(values.size())));
    std::copy_n(values.data(), values.size(),
                reinterpret_cast<PyTupleObject *>(tuple.ptr())->ob_item);
    values.truncate(0);
    return tuple;
}

}  // namespace pytree
