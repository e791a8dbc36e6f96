#pragma once

#include <cstdint>

namespace diffopt::dlpack {

// The part of DLPack's binary interface that tells what a tensor is, and makes one: version 1.3 of
// https://dmlc.github.io/dlpack/latest/c_api.html, which promises not to change within version 1.

enum DeviceType : std::int32_t { cpu = 1, cuda = 2 };
enum TypeCode : std::uint8_t { floating = 2, brain_floating = 4 };

struct Device {
    std::int32_t type, index;
};

struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

struct Tensor {
    void *data;
    Device device;
    std::int32_t dimensions;
    DataType dtype;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};

/// A tensor whose memory somebody else gives back.
struct Managed {
    std::uint32_t major, minor;
    void *context;
    void (*give_back)(Managed *self);
    std::uint64_t flags;
    Tensor tensor;
};

/// What `Tensor.__dlpack_c_exchange_api__` holds: functions that a library offers others.
struct Exchange {
    std::uint32_t major, minor;
    Exchange *older;
    void (*allocate)(), (*export_owning)();  // of no use here
    /// Makes an object of a tensor, which from then on is the object's if this returns 0.
    int (*import_owning)(Managed *tensor, void **object);
    int (*describe)(void *object, Tensor *description);  // may be null
    void (*current_stream)();
};

}  // namespace diffopt::dlpack
