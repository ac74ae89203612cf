// Rows to and from their places, one warp to a row, in the widest loads and stores that all rows are aligned for.
#include "ops.h"
#include "scan.cuh"

#include <algorithm>

namespace pixelrefer_fast::cuda {
namespace {

constexpr int kUnrolled = 4;  // loads in flight of one thread
constexpr int64_t kMostBlocks = 1 << 16;

// (count, row_bytes) rows between `embeds`, at their slots, and `tokens`, in their order.
template <typename Vector, typename Element, bool gather>
__global__ void __launch_bounds__(kThreads) move_rows(
    const char* __restrict__ from,
    int64_t from_stride,
    char* __restrict__ to,
    int64_t to_stride,
    const int64_t* __restrict__ slots,  // (count,)
    int64_t length,
    int64_t count,
    int64_t row_bytes
) {
  const int lane = threadIdx.x % kWarp;
  const int64_t vectors = row_bytes / sizeof(Vector);
  for (int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; token < count;
       token += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t slot = slots[token];
    const bool placed = slot >= 0 && slot < length;
    if (!gather && !placed) continue;
    const char* source = from + (gather ? (placed ? slot : 0) : token) * from_stride;
    char* target = to + (gather ? token : slot) * to_stride;
    for (int64_t base = lane; base < vectors; base += kWarp * kUnrolled) {
      Vector held[kUnrolled];
#pragma unroll
      for (int i = 0; i < kUnrolled; ++i) {
        const int64_t v = base + i * kWarp;
        held[i] = Vector{};
        if (placed && v < vectors) held[i] = reinterpret_cast<const Vector*>(source)[v];
      }
#pragma unroll
      for (int i = 0; i < kUnrolled; ++i) {
        const int64_t v = base + i * kWarp;
        if (v < vectors) reinterpret_cast<Vector*>(target)[v] = held[i];
      }
    }
    // less than one vector is left when the rows are parts of wider ones
    for (int64_t byte = vectors * sizeof(Vector) + lane * sizeof(Element); byte < row_bytes;
         byte += kWarp * sizeof(Element)) {
      *reinterpret_cast<Element*>(target + byte) =
          placed ? *reinterpret_cast<const Element*>(source + byte) : Element{};
    }
  }
}

template <bool gather>
void move(const char* from, int64_t from_stride, char* to, int64_t to_stride, const int64_t* slots, int64_t length,
          int64_t count, int64_t row_bytes, int element, cudaStream_t stream) {
  if (count == 0 || row_bytes == 0) return;
  const int64_t blocks = std::min(kMostBlocks, (count + kWarps - 1) / kWarps);
  const auto aligned = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) |
                       static_cast<uintptr_t>(from_stride) | static_cast<uintptr_t>(to_stride);
  auto* kernel = element == 4 ? move_rows<uint32_t, uint32_t, gather> : move_rows<uint16_t, uint16_t, gather>;
  if (aligned % 16 == 0) {
    kernel = element == 4 ? move_rows<uint4, uint32_t, gather> : move_rows<uint4, uint16_t, gather>;
  } else if (aligned % 4 == 0) {
    kernel = element == 4 ? move_rows<uint32_t, uint32_t, gather> : move_rows<uint32_t, uint16_t, gather>;
  }
  launch(kernel, blocks, kThreads, stream, from, from_stride, to, to_stride, slots, length, count, row_bytes);
}

}  // namespace

void scatter_tokens(char* embeds, int64_t embeds_stride, const char* tokens, int64_t tokens_stride,
                    const int64_t* slots, int64_t length, int64_t count, int64_t row_bytes, int element,
                    cudaStream_t stream) {
  move<false>(tokens, tokens_stride, embeds, embeds_stride, slots, length, count, row_bytes, element, stream);
}

void gather_tokens(const char* embeds, int64_t embeds_stride, char* tokens, int64_t tokens_stride,
                   const int64_t* slots, int64_t length, int64_t count, int64_t row_bytes, int element,
                   cudaStream_t stream) {
  move<true>(embeds, embeds_stride, tokens, tokens_stride, slots, length, count, row_bytes, element, stream);
}

}  // namespace pixelrefer_fast::cuda
