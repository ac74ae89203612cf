// Vectors of 16 floats in whatever registers a processor has. What is written once in dense.h is compiled for each
// kind of them (dense.cpp), and the processor chooses at the first call; a file compiled for one kind alone would not
// run elsewhere.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace pixelrefer_fast::cpu {

constexpr int64_t kLanes = 16;
typedef float Wide __attribute__((vector_size(4 * kLanes)));
typedef uint32_t WideBits __attribute__((vector_size(4 * kLanes)));

}  // namespace pixelrefer_fast::cpu
