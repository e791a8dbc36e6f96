#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "call.hpp"

namespace diffopt::cuda {

/// A hyperparameter that lies on the device: tensor i has the number at `numbers` + i * `stride`.
/// Where `numbers` is null, the hyperparameter is on the host: see Tensor.
struct Source {
    const void *numbers;
    Dtype dtype;
    std::int64_t stride;
};

/// Where a step is put in line. Nothing here waits for the device, and nothing allocates.
struct Queue {
    int device;
    std::uintptr_t stream;
    void *workspace;              // `workspace_size` bytes on the device, aligned to 16
    std::vector<Source> sources;  // of all hyperparameters, with weight decay, or of none
};

/// As on the CPU, with addresses on the device; `sums` too.
void forward(const Call &call, const std::vector<Tensor> &tensors, const Queue &queue);
void vjp(const Call &call, const std::vector<Tensor> &tensors, double *sums, const Queue &queue);

/// Bytes for the sums over tensors of these sizes, and for hyperparameters from the device.
std::int64_t workspace_size(const std::vector<std::int64_t> &sizes);

/// Compute capabilities that these kernels are compiled for, as "80, 90".
const char *architectures();

/// Why the kernels cannot run on a device; empty if they can.
std::string obstacle(int device);

}  // namespace diffopt::cuda
