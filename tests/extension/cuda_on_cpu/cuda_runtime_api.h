// Stands in for CUDA's header where the kernels run on the CPU (device_on_cpu.h).
#pragma once

#include <cstdint>
#include <cstring>

using cudaStream_t = void*;

inline int cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return 0;
}
