#include "passes.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>

#include "cpu.hpp"
#include "element.hpp"

namespace py = pybind11;

namespace diffopt {
namespace {

/// Calls with an element of this type. (Its value says nothing.)
template <typename Use>
auto with_element(Dtype dtype, Use use) {
    switch (dtype) {
        case Dtype::float64:
            return use(double{});
        case Dtype::float32:
            return use(float{});
        case Dtype::bfloat16:
            return use(BFloat16{});
        default:
            return use(Half{});
    }
}

double get_number(const View &view) {
    return with_element(view.dtype, [&](auto element) {
        return static_cast<double>(widen(*reinterpret_cast<decltype(element) *>(view.address)));
    });
}

void put_number(Dtype dtype, std::uintptr_t address, double number) {
    with_element(dtype, [&](auto element) {
        using S = decltype(element);
        *reinterpret_cast<S *>(address) = narrow<S>(static_cast<Wide<S>>(number));
    });
}

/// The step of each of `rows` tensors; null unless all are integers from 1 on.
py::tuple read_steps(const py::object &steps, std::size_t rows) {
    py::tuple each;
    if (PyLong_CheckExact(steps.ptr())) {
        each = py::tuple(rows);
        for (std::size_t i = 0; i < rows; ++i) each[i] = steps;
    } else if (PyList_Check(steps.ptr()) || PyTuple_Check(steps.ptr())) {
        each = py::tuple(steps);
    }
    bool right = each.size() == rows;
    for (const auto &step : each) {
        int overflow = 0;
        right = right && PyLong_CheckExact(step.ptr()) &&
                PyLong_AsLongLongAndOverflow(step.ptr(), &overflow) >= 1;
    }
    return right ? each : py::reinterpret_steal<py::tuple>(nullptr);
}

/// Whether all that are floats are at least 0 and less than their bounds.
bool are_within(const py::tuple &numbers, const py::tuple &bounds) {
    expect(numbers.size() == bounds.size(), "bounds: wrong count");
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        PyObject *number = PyTuple_GET_ITEM(numbers.ptr(), i);
        if (!PyFloat_CheckExact(number)) continue;
        const double value = PyFloat_AS_DOUBLE(number);
        if (!(0 <= value && value < PyFloat_AsDouble(PyTuple_GET_ITEM(bounds.ptr(), i))))
            return false;
    }
    return true;
}

std::vector<std::int64_t> integers(const py::tuple &numbers) {
    std::vector<std::int64_t> found;
    for (const auto &number : numbers) found.push_back(PyLong_AsLongLong(number.ptr()));
    if (PyErr_Occurred()) throw py::error_already_set();
    return found;
}

py::tuple as_tuple(const std::vector<std::int64_t> &numbers) {
    py::tuple found(numbers.size());
    for (std::size_t i = 0; i < numbers.size(); ++i) found[i] = py::int_(numbers[i]);
    return found;
}

/// Which of these are needed.
std::vector<bool> flags(const py::tuple &needed, std::size_t begin, std::size_t end) {
    std::vector<bool> found;
    for (std::size_t i = begin; i < end; ++i)
        found.push_back(PyTuple_GET_ITEM(needed.ptr(), i) == Py_True);
    return found;
}

/// Leaves out the rows that have no cotangent.
void leave_out(std::vector<bool> &wanted, const std::vector<PyObject *> &cotangents,
               std::size_t rows) {
    std::vector<bool> present(rows);
    for (std::size_t i = 0; i < cotangents.size(); ++i)
        if (cotangents[i] != Py_None) present[i % rows] = true;
    for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = wanted[i] && present[i % rows];
}

}  // namespace

Passes::Passes(const Looker &looker, py::object empty_like)
    : looker_(looker), outputs_(looker, std::move(empty_like)) {}

std::optional<Passes::Numbers> Passes::read(const py::tuple &numbers, PyObject *const *kept) const {
    Numbers found;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        PyObject *number = PyTuple_GET_ITEM(numbers.ptr(), i);
        if (PyFloat_CheckExact(number)) {
            found.values.push_back(PyFloat_AS_DOUBLE(number));
            continue;
        }
        if (kept && number == Py_None) number = *kept++;
        const auto view = looker_.look_at(number);
        if (!view || !view->shape.empty() || view->device != Found::on_cpu) return std::nullopt;
        found.values.push_back(get_number(*view));
        found.learned.push_back(i);
    }
    return found;
}

std::vector<std::uintptr_t> Passes::make_row(const std::vector<PyObject *> &flat,
                                             const Found &found, const std::vector<bool> &wanted,
                                             py::tuple &into, std::size_t first) const {
    std::vector<std::uintptr_t> addresses(wanted.size());
    const std::size_t rows = found.sizes.size();
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (!wanted[i]) continue;
        const auto row = i % rows;
        const Form form{found.dtype, found.shapes[row], found.strides[row]};
        auto [made, address] = outputs_.make(form, flat[row]);
        into[first + i] = std::move(made);
        addresses[i] = address;
    }
    return addresses;
}

void Passes::put_sums(const std::vector<double> &sums, const Numbers &hyper, PyObject *const *kept,
                      const std::vector<bool> &wanted, py::tuple &into, std::size_t first) const {
    const std::size_t rows = sums.size() / hyper.values.size();
    View like;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (!wanted[i]) continue;
        looker_.describe(kept[i], like);
        auto [made, address] = outputs_.make({like.dtype, like.shape, like.strides}, kept[i]);
        into[first + i] = std::move(made);
        const auto row = sums.begin() + hyper.learned[i] * rows;
        put_number(like.dtype, address, std::accumulate(row, row + rows, 0.0));
    }
}

py::object Passes::forward(int rule, int variant, bool decoupled, bool maximize, bool applied,
                           const py::tuple &numbers, const py::tuple &bounds,
                           const py::tuple &columns, const py::object &steps,
                           const py::object &known, int threads) const {
    const auto arrays = flatten(columns);
    if (!arrays || arrays.empty() || !are_within(numbers, bounds)) return py::none();
    const std::size_t rows = arrays.size() / columns.size();
    const auto each_step = read_steps(steps, rows);
    const auto hyper = read(numbers, nullptr);
    if (!each_step || !hyper) return py::none();
    auto flat = items(arrays);
    const bool is_known = !known.is_none();
    if (is_known) {
        const auto given = items(known);
        if (given.size() % rows != 0) return py::none();
        flat.insert(flat.end(), given.begin(), given.end());
    }
    const auto found = looker_.look_on_cpu(flat, rows, flat.size() / rows);
    if (!found) return py::none();

    const bool is_float = PyFloat_CheckExact(PyTuple_GET_ITEM(numbers.ptr(), numbers.size() - 1));
    const bool decays = !is_float || hyper->values.back() != 0;
    const int decay = !decays ? 0 : decoupled ? 2 : 1;
    Request request(rule, variant, decay, maximize, applied, hyper->values, integers(each_step),
                    *found);
    const std::size_t made = (1 + request.states()) * rows;
    const std::size_t used = made + (decays || applied) * rows;
    if (arrays.size() < used) return py::none();
    py::object outputs = known;
    if (is_known) {
        if (flat.size() != arrays.size() + made) return py::none();
    } else {
        py::tuple row(made);
        const std::vector<bool> all(made, true);
        request.place_forward(*found, make_row(flat, *found, all, row, 0));
        outputs = std::move(row);
        const py::gil_scoped_release unlocked;
        diffopt::forward(request.call, request.tensors, threads);
    }
    const auto inputs = arrays[py::slice(0, static_cast<py::ssize_t>(used), 1)];
    return py::make_tuple(decay, hyper->learned.empty(), each_step, as_tuple(found->sizes), inputs,
                          outputs);
}

py::object Passes::vjp(int rule, int variant, int decay, bool maximize, bool applied,
                       const py::tuple &numbers, const py::tuple &steps, const py::tuple &sizes,
                       const py::tuple &tensors, const py::tuple &cotangents,
                       const py::tuple &needed, int threads) const {
    const auto kept = items(tensors), last = items(cotangents);
    const auto hyper = read(numbers, kept.data());
    if (!hyper) return py::none();
    const std::size_t learned = hyper->learned.size(), rows = sizes.size();
    std::vector<PyObject *> flat(kept.begin() + learned, kept.end());
    const std::size_t columns = flat.size() / rows, lead = needed.size() - kept.size();
    flat.insert(flat.end(), last.begin(), last.end());
    const auto found = looker_.look_on_cpu(flat, rows, columns);
    if (!found || found->sizes != integers(sizes)) return py::none();

    Request request(rule, variant, decay, maximize, applied, hyper->values, integers(steps),
                    *found);
    py::tuple results(needed.size());
    for (std::size_t i = 0; i < needed.size(); ++i) results[i] = py::none();
    auto of_arrays = flags(needed, lead + learned, needed.size());
    const auto of_numbers = flags(needed, lead, lead + learned);
    leave_out(of_arrays, last, rows);
    if (applied && decay == 0) {
        // A parameter gets the very cotangent of what it becomes.
        const std::size_t first = of_arrays.size() - rows;
        for (std::size_t i = 0; i < rows; ++i) {
            if (of_arrays[first + i])
                results[lead + learned + first + i] = py::reinterpret_borrow<py::object>(last[i]);
            of_arrays[first + i] = false;
        }
    }
    request.place_vjp(*found, make_row(flat, *found, of_arrays, results, lead + learned));
    const bool sums = std::any_of(of_numbers.begin(), of_numbers.end(), [](bool x) { return x; });
    std::vector<double> shares(sums ? request.width() * rows : 0);
    {
        const py::gil_scoped_release unlocked;
        diffopt::vjp(request.call, request.tensors, sums ? shares.data() : nullptr, threads);
    }
    put_sums(shares, *hyper, kept.data(), of_numbers, results, lead);
    return results;
}

}  // namespace diffopt
