// The rules driven by a grid: one launch for as many tensors as its argument can describe.

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "cuda.hpp"
#include "cuda_kernels.cuh"
#include "surroundings.hpp"

namespace diffopt::cuda {
namespace {

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(
        "A kernel could not be launched: " + std::string(cudaGetErrorString(error)) + ".");
}

template <typename Argument>
void launch(void (*kernel)(Argument), dim3 blocks, const Argument &argument, const Queue &queue) {
    static_assert(sizeof(Argument) <= 32'764, "as much as a launch can pass");
    void *arguments[] = {const_cast<Argument *>(&argument)};
    check(cudaLaunchKernel(kernel, blocks, dim3(threads), arguments, 0,
                           reinterpret_cast<cudaStream_t>(queue.stream)));
}

template <typename Rule, typename T>
void prepare(const Call &call, const std::vector<Tensor> &tensors, const Queue &queue) {
    static_assert(sizeof(Prepared<Rule, T>) <= prepared_size, "make the workspace larger");
    Numbers numbers{};
    numbers.call = call;
    numbers.prepared = static_cast<unsigned char *>(queue.workspace);
    std::copy(queue.sources.begin(), queue.sources.end(), numbers.sources);
    const auto count = static_cast<std::int64_t>(tensors.size());
    for (std::int64_t first = 0; first < count; first += numbers.count) {
        numbers.first_tensor = first;
        numbers.count = static_cast<int>(std::min<std::int64_t>(Numbers::capacity, count - first));
        for (int i = 0; i < numbers.count; ++i) {
            numbers.steps[i] = tensors[first + i].step;
            std::copy_n(tensors[first + i].hyper, Rule::hypers + 1, numbers.hyper[i]);
        }
        launch(&prepare_kernel<Rule, T>, dim3(1), numbers, queue);
    }
}

bool is_aligned(const Tensor &t) {
    std::uintptr_t bits = 0;
    const auto add = [&](const void *address) {
        bits |= reinterpret_cast<std::uintptr_t>(address);
    };
    for (const void *address : {t.g, t.p, t.d_update}) add(address);
    for (const void *address : {t.out_update, t.out_g, t.out_p}) add(address);
    for (int k = 0; k < max_states; ++k) add(t.states[k]), add(t.d_states[k]), add(t.out_states[k]);
    return bits % 16 == 0;
}

/// Launches a kernel over all chunks of all tensors. Sums of chunks come to lie in the workspace,
/// behind what is prepared.
template <typename Rule, typename T>
void launch_rows(void (*kernel)(Rows<Rule, T>), const Call &call,
                 const std::vector<Tensor> &tensors, bool sums, const Queue &queue) {
    auto *workspace = static_cast<unsigned char *>(queue.workspace);
    const bool from_device = !queue.sources.empty();
    if (from_device) prepare<Rule, T>(call, tensors, queue);
    static_assert(std::is_trivially_copyable_v<Rows<Rule, T>>, "the driver copies it");
    alignas(Rows<Rule, T>) unsigned char memory[sizeof(Rows<Rule, T>)];
    auto &rows = *reinterpret_cast<Rows<Rule, T> *>(memory);
    rows.call = call;
    rows.count = 0;
    rows.prepared = from_device ? workspace : nullptr;
    rows.partial =
        sums ? reinterpret_cast<double *>(workspace + tensors.size() * prepared_size) : nullptr;
    std::int64_t chunks = 0, launched = 0;
    const auto flush = [&] {
        if (rows.count) launch(kernel, dim3(static_cast<unsigned>(chunks - launched)), rows, queue);
        rows.count = 0;
        launched = chunks;
    };
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const Tensor &t = tensors[i];
        if (t.size == 0) continue;
        if (rows.count == rows.capacity) flush();
        rows.rows[rows.count++] = {
            t,
            chunks,
            static_cast<std::int64_t>(i),
            is_aligned(t),
            {Rule(t.hyper, t.step), Surroundings<T>(call, t.hyper[0], t.hyper[Rule::hypers])}};
        chunks += chunks_of(t.size);
    }
    flush();
}

void launch_sums(const std::vector<Tensor> &tensors, int width, double *sums, const Queue &queue) {
    Ranges ranges{};
    const auto count = static_cast<std::int64_t>(tensors.size());
    ranges.tensors = count;
    ranges.partial = reinterpret_cast<const double *>(
        static_cast<unsigned char *>(queue.workspace) + tensors.size() * prepared_size);
    ranges.sums = sums;
    std::int64_t chunk = 0;
    for (std::int64_t first = 0; first < count; first += Ranges::capacity) {
        const auto here = std::min<std::int64_t>(Ranges::capacity, count - first);
        ranges.first_tensor = first;
        ranges.first_chunk[0] = chunk;
        for (std::int64_t i = 0; i < here; ++i)
            ranges.first_chunk[i + 1] = chunk += chunks_of(tensors[first + i].size);
        launch(&sum_kernel, dim3(static_cast<unsigned>(here), static_cast<unsigned>(width)), ranges,
               queue);
    }
}

using Run = void (*)(const Call &, const std::vector<Tensor> &, double *sums, const Queue &);

template <typename S, typename Rule>
void run_forward(const Call &call, const std::vector<Tensor> &tensors, double *,
                 const Queue &queue) {
    launch_rows(&forward_kernel<S, Rule>, call, tensors, false, queue);
}

template <typename S, typename Rule>
void run_vjp(const Call &call, const std::vector<Tensor> &tensors, double *sums,
             const Queue &queue) {
    if (!sums) return launch_rows(&vjp_kernel<false, S, Rule>, call, tensors, false, queue);
    launch_rows(&vjp_kernel<true, S, Rule>, call, tensors, true, queue);
    launch_sums(tensors, Rule::hypers + 1, sums, queue);
}

struct Pass {
    Run forward, vjp;
};

template <typename S, template <typename, int> class R, typename Variants>
struct Passes;
template <typename S, template <typename, int> class R, int... variant>
struct Passes<S, R, std::integer_sequence<int, variant...>> {
    static constexpr Pass all[] = {
        {run_forward<S, R<Wide<S>, variant>>, run_vjp<S, R<Wide<S>, variant>>}...};
};

template <typename S, template <typename, int> class... R>
const Pass &find_pass(const Call &call, RuleList<R...>) {
    static constexpr const Pass *rules[] = {
        Passes<S, R, std::make_integer_sequence<int, R<Wide<S>, 0>::variants>>::all...};
    return rules[call.rule][call.variant];
}

const Pass &find_pass(const Call &call) {
    switch (call.dtype) {
        case Dtype::float64:
            return find_pass<double>(call, AllRules{});
        case Dtype::float32:
            return find_pass<float>(call, AllRules{});
        case Dtype::bfloat16:
            return find_pass<BFloat16>(call, AllRules{});
        default:
            return find_pass<Half>(call, AllRules{});
    }
}

}  // namespace

void forward(const Call &call, const std::vector<Tensor> &tensors, const Queue &queue) {
    check(cudaSetDevice(queue.device));
    find_pass(call).forward(call, tensors, nullptr, queue);
}

void vjp(const Call &call, const std::vector<Tensor> &tensors, double *sums, const Queue &queue) {
    check(cudaSetDevice(queue.device));
    find_pass(call).vjp(call, tensors, sums, queue);
}

std::int64_t workspace_size(const std::vector<std::int64_t> &sizes) {
    std::int64_t chunks = 0;
    for (const auto size : sizes) chunks += chunks_of(size);
    return static_cast<std::int64_t>(sizes.size() * prepared_size) +
           chunks * static_cast<std::int64_t>((max_hypers + 1) * sizeof(double));
}

const char *architectures() { return DIFFOPT_CUDA_ARCHITECTURES; }

std::string obstacle(int device) {
    int driver = 0;
    cudaFuncAttributes attributes;
    cudaError_t error = cudaDriverGetVersion(&driver);
    if (error == cudaSuccess) error = cudaSetDevice(device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, sum_kernel);
    if (error != cudaSuccess) {
        cudaGetLastError();  // or the next caller would be told of it
        return cudaGetErrorString(error);
    }
    return driver < 12'010 ? "the driver is older than CUDA 12.1" : "";
}

}  // namespace diffopt::cuda
