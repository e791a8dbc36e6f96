// The rules driven by a grid: one launch for as many tensors as its argument can describe.

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "cuda.hpp"
#include "surroundings.hpp"

namespace diffopt::cuda {
namespace {

constexpr int threads = 256;  // of a block; a power of two
// What a block handles. Cut by size alone, so that sums come out alike on every device.
constexpr std::int64_t chunk_size = 4096;
constexpr std::size_t argument_size = 32'000;  // CUDA 12.1 and newer pass up to 32,764 bytes
constexpr std::size_t prepared_size = 256;     // bytes of workspace a tensor

std::int64_t chunks_of(std::int64_t size) { return (size + chunk_size - 1) / chunk_size; }

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(
        "A kernel could not be launched: " + std::string(cudaGetErrorString(error)) + ".");
}

/// A rule and its surroundings, made ready for one tensor.
template <typename Rule, typename T>
struct Prepared {
    Rule rule;
    Surroundings<T> around;
};

/// One tensor of a launch.
template <typename Rule, typename T>
struct Row {
    Tensor tensor;
    std::int64_t first_chunk, number;  // counted through all tensors of the step
    bool aligned;                      // all arrays, to 16 bytes
    Prepared<Rule, T> prepared;
};

/// The argument of a kernel.
template <typename Rule, typename T>
struct Rows {
    static constexpr int capacity = static_cast<int>((argument_size - 64) / sizeof(Row<Rule, T>));

    Call call;
    int count;
    const unsigned char *prepared;  // by tensor, in the workspace; null: as the rows say
    double *partial;                // sums of each chunk; null: not wanted
    Row<Rule, T> rows[capacity];

    /// The row that a chunk belongs to: the last that does not begin after it.
    __device__ const Row<Rule, T> &find(std::int64_t chunk) const {
        int low = 0, high = count;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (rows[middle].first_chunk <= chunk ? low : high) = middle;
        }
        return rows[low];
    }

    __device__ Prepared<Rule, T> prepared_for(const Row<Rule, T> &row) const {
        if (!prepared) return row.prepared;
        return *reinterpret_cast<const Prepared<Rule, T> *>(prepared + row.number * prepared_size);
    }
};

/// Elements that one access moves.
template <typename S, int n>
struct Pack {
    static_assert(sizeof(S) * n == sizeof(uint4), "16 bytes are the most");
    S at[n];
};

template <typename S, int n>
__device__ void load(const void *array, std::int64_t i, Wide<S> (&to)[n]) {
    if (!array) {
        for (int j = 0; j < n; ++j) to[j] = Wide<S>(0);
        return;
    }
    const auto *address = static_cast<const S *>(array) + i;
    if constexpr (n == 1) {
        to[0] = widen(*address);
    } else {
        const auto pack = bit_cast<Pack<S, n>>(*reinterpret_cast<const uint4 *>(address));
#pragma unroll
        for (int j = 0; j < n; ++j) to[j] = widen(pack.at[j]);
    }
}

template <typename S, int n>
__device__ void store(void *array, std::int64_t i, const Wide<S> (&from)[n]) {
    if (!array) return;
    auto *address = static_cast<S *>(array) + i;
    if constexpr (n == 1) {
        *address = narrow<S>(from[0]);
    } else {
        Pack<S, n> pack;
#pragma unroll
        for (int j = 0; j < n; ++j) pack.at[j] = narrow<S>(from[j]);
        // Not by an assignment, which the compiler takes apart into narrower ones.
        __stwb(reinterpret_cast<uint4 *>(address), bit_cast<uint4>(pack));
    }
}

/// Computes n elements, from the i-th on.
template <int n, typename S, typename Rule, typename T>
__device__ void forward_elements(const Tensor &t, const Prepared<Rule, T> &prepared,
                                 std::int64_t i) {
    const auto &around = prepared.around;
    T g[n], p[n], s[max_states][n];
    load<S>(t.g, i, g);
    load<S>(t.p, i, p);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) load<S>(t.states[k], i, s[k]);
#pragma unroll
    for (int j = 0; j < n; ++j) {
        T state[max_states] = {};
        for (int k = 0; k < Rule::states; ++k) state[k] = s[k][j];
        const T d = around.coupled ? around.decayed(g[j], p[j]) : around.sign * g[j];
        T u = prepared.rule.forward(d, state);
        if (around.decoupled) u = around.shrunk(u, p[j]);
        g[j] = around.moved(u, p[j]);
        for (int k = 0; k < Rule::states; ++k) s[k][j] = state[k];
    }
    store<S>(t.out_update, i, g);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) store<S>(t.out_states[k], i, s[k]);
}

/// The same for the vector-Jacobian product; adds to the sums over hyperparameters if they are
/// wanted.
template <int n, bool wanted, typename S, typename Rule, typename T>
__device__ void vjp_elements(const Tensor &t, const Prepared<Rule, T> &prepared, double *sums,
                             std::int64_t i) {
    const auto &around = prepared.around;
    T g[n], p[n], du[n], s[max_states][n], ds[max_states][n];
    load<S>(t.g, i, g);
    load<S>(t.p, i, p);
    load<S>(t.d_update, i, du);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) {
        load<S>(t.states[k], i, s[k]);
        load<S>(t.d_states[k], i, ds[k]);
    }
#pragma unroll
    for (int j = 0; j < n; ++j) {
        T state[max_states] = {}, d_state[max_states] = {}, dh[max_hypers] = {};
        for (int k = 0; k < Rule::states; ++k) state[k] = s[k][j], d_state[k] = ds[k][j];
        const T descent = around.coupled ? around.decayed(g[j], p[j]) : around.sign * g[j];
        const T d_descent = prepared.rule.vjp(descent, state, du[j], d_state, dh);
        if constexpr (wanted) {
            for (int h = 0; h < Rule::hypers; ++h) sums[h] += static_cast<double>(dh[h]);
            if (around.coupled) {
                sums[Rule::hypers] += static_cast<double>(around.per_coupled(p[j], d_descent));
            } else if (around.decoupled) {
                sums[0] += static_cast<double>(around.per_lr(p[j], du[j]));
                sums[Rule::hypers] += static_cast<double>(around.per_decoupled(p[j], du[j]));
            }
        }
        const T d_p = around.coupled     ? around.d_decayed(d_descent)
                      : around.decoupled ? around.d_shrunk(du[j])
                                         : T(0);
        p[j] = around.d_parameter(d_p, du[j]);
        g[j] = around.sign * d_descent;
        for (int k = 0; k < Rule::states; ++k) ds[k][j] = d_state[k];
    }
    store<S>(t.out_g, i, g);
    store<S>(t.out_p, i, p);
#pragma unroll
    for (int k = 0; k < Rule::states; ++k) store<S>(t.out_states[k], i, ds[k]);
}

/// Calls `many` with places of whole packs, 16 bytes each, of this block's chunk, and `one` with
/// those of the elements that are left.
template <typename S, typename Rule, typename T, typename Many, typename One>
__device__ void for_each_element(const Row<Rule, T> &row, std::int64_t chunk, Many many, One one) {
    constexpr int n = 16 / sizeof(S);
    const std::int64_t begin = (chunk - row.first_chunk) * chunk_size;
    const std::int64_t size =
        row.tensor.size - begin < chunk_size ? row.tensor.size - begin : chunk_size;
    const int packed = row.aligned ? static_cast<int>(size) / n * n : 0;
    for (int i = static_cast<int>(threadIdx.x) * n; i < packed;
         i += static_cast<int>(blockDim.x) * n)
        many(begin + i);
    for (int i = packed + static_cast<int>(threadIdx.x); i < size;
         i += static_cast<int>(blockDim.x))
        one(begin + i);
}

template <typename S, typename Rule, typename T = Wide<S>>
__global__ void __launch_bounds__(threads)
    forward_kernel(const __grid_constant__ Rows<Rule, T> rows) {
    const std::int64_t chunk = rows.rows[0].first_chunk + blockIdx.x;
    const auto &row = rows.find(chunk);
    const auto prepared = rows.prepared_for(row);
    for_each_element<S>(
        row, chunk,
        [&](std::int64_t i) { forward_elements<16 / sizeof(S), S>(row.tensor, prepared, i); },
        [&](std::int64_t i) { forward_elements<1, S>(row.tensor, prepared, i); });
}

/// Adds up what the threads of a block hold, always in the same order.
template <int count>
__device__ void sum_over_block(const double (&mine)[count], double *out) {
    __shared__ double all[count][threads];
    const int thread = static_cast<int>(threadIdx.x);
    for (int k = 0; k < count; ++k) all[k][thread] = mine[k];
    for (int half = static_cast<int>(blockDim.x) / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half)
            for (int k = 0; k < count; ++k) all[k][thread] += all[k][thread + half];
    }
    if (thread == 0)
        for (int k = 0; k < count; ++k) out[k] = all[k][0];
}

template <bool wanted, typename S, typename Rule, typename T = Wide<S>>
__global__ void __launch_bounds__(threads) vjp_kernel(const __grid_constant__ Rows<Rule, T> rows) {
    const std::int64_t chunk = rows.rows[0].first_chunk + blockIdx.x;
    const auto &row = rows.find(chunk);
    const auto prepared = rows.prepared_for(row);
    double sums[Rule::hypers + 1] = {};
    for_each_element<S>(
        row, chunk,
        [&](std::int64_t i) {
            vjp_elements<16 / sizeof(S), wanted, S>(row.tensor, prepared, sums, i);
        },
        [&](std::int64_t i) { vjp_elements<1, wanted, S>(row.tensor, prepared, sums, i); });
    if constexpr (wanted) sum_over_block(sums, rows.partial + chunk * (Rule::hypers + 1));
}

/// The chunks of some tensors in a row, for the sums over each.
struct Ranges {
    static constexpr int capacity = 3'900;

    std::int64_t first_tensor, tensors;  // of this launch; of the step
    const double *partial;
    double *sums;
    std::int64_t first_chunk[capacity + 1];  // of each, and where the last ends
};

/// A block sums one hyperparameter of one tensor.
__global__ void __launch_bounds__(threads) sum_kernel(const __grid_constant__ Ranges ranges) {
    const int width = static_cast<int>(gridDim.y), k = static_cast<int>(blockIdx.y);
    double mine[1] = {0};
    const std::int64_t end = ranges.first_chunk[blockIdx.x + 1];
    for (std::int64_t i = ranges.first_chunk[blockIdx.x] + threadIdx.x; i < end; i += blockDim.x)
        mine[0] += ranges.partial[i * width + k];
    sum_over_block(mine, ranges.sums + k * ranges.tensors + ranges.first_tensor + blockIdx.x);
}

/// The hyperparameters of some tensors in a row, from the host and from the device.
struct Numbers {
    static constexpr int capacity = 400, width = max_hypers + 1;

    Call call;
    std::int64_t first_tensor;
    int count;
    unsigned char *prepared;
    Source sources[width];
    std::int64_t steps[capacity];
    double hyper[capacity][width];
};

__device__ double read(const Source &source, std::int64_t i) {
    i *= source.stride;
    switch (source.dtype) {
        case Dtype::float64:
            return static_cast<const double *>(source.numbers)[i];
        case Dtype::float32:
            return static_cast<const float *>(source.numbers)[i];
        case Dtype::bfloat16:
            return widen(static_cast<const BFloat16 *>(source.numbers)[i]);
        default:
            return widen(static_cast<const Half *>(source.numbers)[i]);
    }
}

/// One block makes the rule ready for each tensor.
template <typename Rule, typename T>
__global__ void __launch_bounds__(threads) prepare_kernel(const __grid_constant__ Numbers numbers) {
    for (int i = static_cast<int>(threadIdx.x); i < numbers.count;
         i += static_cast<int>(blockDim.x)) {
        const std::int64_t tensor = numbers.first_tensor + i;
        double hyper[Rule::hypers + 1];
        for (int k = 0; k <= Rule::hypers; ++k)
            hyper[k] =
                numbers.sources[k].numbers ? read(numbers.sources[k], tensor) : numbers.hyper[i][k];
        *reinterpret_cast<Prepared<Rule, T> *>(numbers.prepared + tensor * prepared_size) = {
            Rule(hyper, numbers.steps[i]),
            Surroundings<T>(numbers.call, hyper[0], hyper[Rule::hypers])};
    }
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
