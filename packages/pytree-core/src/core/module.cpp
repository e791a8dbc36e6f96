#include "calls.hpp"
#include "compare.hpp"
#include "key_layout.hpp"
#include "kinds.hpp"
#include "layout_cache.hpp"
#include "registry.hpp"
#include "treespec.hpp"

NB_MODULE(_native, module) {
    using namespace pytree;

    // The types and the registry exist once in a process. Newer Pythons refuse by themselves.
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        raise(PyExc_ImportError, "pytree_core does not support subinterpreters");
    }
    find_collections();
    add_key_layout_type();
    add_treespec_type(module);
    add_calls(module);
    module.attr("MAX_DEPTH") = kMaxDepth;
    module.attr("__cache__") = nb::capsule(&kMaxDepth, [](void *) noexcept { clear_layouts(); });
    module.def("publish", publish, nb::arg("namespace"), nb::arg("registrations"),
               "Replace the registrations of a namespace.");
    module.def(
        "mismatches",
        [](nb::handle treespec, nb::handle tree) {
            RefVector<128> subtrees;
            nb::list texts;
            for (auto &text : flatten_up_to(view_of(treespec.ptr()), tree.ptr(), subtrees)) {
                texts.append(text);
            }
            return texts;
        },
        nb::arg("treespec"), nb::arg("tree").none(),
        "List all places where a tree does not have the structure, from left to right.");
}
