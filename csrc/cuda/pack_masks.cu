// Masks to bits, areas, boxes and digests in one pass: a warp votes on 32 pixels of a row at once, a block takes kWarps
// rows, and blocks join what they found by sums and maxima, whose order does not matter.
#include "ops.h"
#include "scan.cuh"

#include <algorithm>

namespace pixelrefer_fast::cuda {
namespace {

constexpr int kUnrolled = 4;  // loads in flight of one thread
constexpr int64_t kMostBlocks = 1 << 16;

struct RowExtent {
  int area, first, last;
  unsigned unfinite;
  unsigned long long highest, lowest, digests[kDigests];
};

__device__ __forceinline__ unsigned long long warp_max(unsigned long long value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = max(value, __shfl_down_sync(kAllLanes, value, step));
  return value;  // right in lane 0
}

__device__ __forceinline__ unsigned long long warp_sum(unsigned long long value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_down_sync(kAllLanes, value, step);
  return value;  // right in lane 0
}

template <typename Values>
__global__ void __launch_bounds__(kThreads) pack_rows(
    const typename Values::Raw* __restrict__ masks,  // (count, height, width)
    int64_t mask_stride,
    int64_t row_stride,
    int64_t column_stride,
    int64_t count,
    int64_t height,
    int width,
    const float* __restrict__ cuts,  // (count,)
    uint8_t* __restrict__ bits,      // (count, height, (width + 7) / 8)
    int64_t* __restrict__ extents    // (count, kExtents), zero at the start
) {
  using Raw = typename Values::Raw;
  __shared__ RowExtent found[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t groups = (height + kWarps - 1) / kWarps, row_bytes = (width + 7) / 8;
  for (int64_t item = blockIdx.x; item < count * groups; item += gridDim.x) {
    const int64_t mask = item / groups, row = item % groups * kWarps + warp;
    RowExtent own{0, width, -1, 0, 0, 0, {}};
    if (row < height) {
      const Raw* line = masks + mask * mask_stride + row * row_stride;
      uint8_t* packed = bits + (mask * height + row) * row_bytes;
      const float cut = cuts[mask];
      for (int64_t base = 0; base < width; base += kWarp * kUnrolled) {
        Raw held[kUnrolled];
#pragma unroll
        for (int i = 0; i < kUnrolled; ++i) {
          const int64_t column = base + i * kWarp + lane;
          held[i] = column < width ? line[column * column_stride] : Raw{0};
        }
#pragma unroll
        for (int i = 0; i < kUnrolled; ++i) {
          const int64_t word = base + i * kWarp;
          if (word >= width) break;
          const bool inside = word + lane < width, marked = inside && Values::marked(held[i], cut);
          const unsigned votes = __ballot_sync(kAllLanes, marked);
          // the first pixel is the highest bit of its byte
          if (lane < 4 && word + 8 * lane < width) {
            packed[word / 8 + lane] = static_cast<uint8_t>(__brev(votes) >> (24 - 8 * lane));
          }
          if (votes != 0) {
            own.area += __popc(votes);
            own.first = min(own.first, static_cast<int>(word) + __ffs(votes) - 1);
            own.last = static_cast<int>(word) + 31 - __clz(votes);
          }
          if (Values::kFloats) {
            if (inside && !Values::finite(held[i])) own.unfinite = 1;
          } else if (marked) {
            own.highest = max(own.highest, static_cast<unsigned long long>(highest_word(Values::number(held[i]))));
            own.lowest = max(own.lowest, static_cast<unsigned long long>(lowest_word(Values::number(held[i]))));
          }
        }
      }
      if (own.area > 0) {
        __syncwarp();  // four lanes have written the row's bytes
        for (int byte = own.first / 8 + lane; byte <= own.last / 8; byte += kWarp) {
#pragma unroll
          for (int d = 0; d < kDigests; ++d) own.digests[d] += digest_part(packed[byte], row * row_bytes + byte, d);
        }
      }
    }
    if (Values::kFloats) {
      own.unfinite = __ballot_sync(kAllLanes, own.unfinite != 0);
    } else {
      own.highest = warp_max(own.highest);
      own.lowest = warp_max(own.lowest);
    }
#pragma unroll
    for (int d = 0; d < kDigests; ++d) own.digests[d] = warp_sum(own.digests[d]);
    if (lane == 0) found[warp] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
      RowExtent all{0, width, -1, 0, 0, 0, {}};
      int top = kWarps, bottom = 0;
      for (int w = 0; w < kWarps; ++w) {
        all.unfinite |= found[w].unfinite;
        if (found[w].area == 0) continue;
        all.area += found[w].area;
        all.first = min(all.first, found[w].first);
        all.last = max(all.last, found[w].last);
        all.highest = max(all.highest, found[w].highest);
        all.lowest = max(all.lowest, found[w].lowest);
#pragma unroll
        for (int d = 0; d < kDigests; ++d) all.digests[d] += found[w].digests[d];
        top = min(top, w);
        bottom = w + 1;
      }
      auto* extent = reinterpret_cast<unsigned long long*>(extents + mask * kExtents);
      const auto raise = [&](int which, int64_t value) {
        atomicMax(extent + which, static_cast<unsigned long long>(value));
      };
      if (all.unfinite != 0) raise(kUnfinite, 1);
      if (all.area > 0) {
        const int64_t start = item % groups * kWarps;
        atomicAdd(extent + kArea, static_cast<unsigned long long>(all.area));
#pragma unroll
        for (int d = 0; d < kDigests; ++d) atomicAdd(extent + kDigest + d, all.digests[d]);
        raise(kBelow, height - start - top);
        raise(kBeyond, width - all.first);
        raise(kBottom, start + bottom);
        raise(kRight, all.last + 1);
        if (!Values::kFloats) {
          raise(kHighest, static_cast<int64_t>(all.highest));
          raise(kLowest, static_cast<int64_t>(all.lowest));
        }
      }
    }
    __syncthreads();  // found is written again
  }
}

template <typename Values>
void pack(const void* masks, int64_t mask_stride, int64_t row_stride, int64_t column_stride, int64_t count,
          int64_t height, int64_t width, const float* cuts, uint8_t* bits, int64_t* extents, cudaStream_t stream) {
  const int64_t items = count * ((height + kWarps - 1) / kWarps);
  launch(pack_rows<Values>, std::min(kMostBlocks, items), kThreads, stream,
         static_cast<const typename Values::Raw*>(masks), mask_stride, row_stride, column_stride, count, height,
         static_cast<int>(width), cuts, bits, extents);
}

}  // namespace

void pack_masks(const void* masks, MaskType type, int64_t mask_stride, int64_t row_stride, int64_t column_stride,
                int64_t count, int64_t height, int64_t width, const float* cuts, uint8_t* bits, int64_t* extents,
                cudaStream_t stream) {
  if (count == 0) return;
  cudaMemsetAsync(extents, 0, count * kExtents * sizeof(*extents), stream);
  auto* run = pack<Integers<uint8_t>>;
  switch (type) {
    case MaskType::kByte: break;
    case MaskType::kInt: run = pack<Integers<int32_t>>; break;
    case MaskType::kLong: run = pack<Integers<int64_t>>; break;
    case MaskType::kFloat: run = pack<Floats<Single>>; break;
    case MaskType::kHalf: run = pack<Floats<Half>>; break;
    case MaskType::kBfloat16: run = pack<Floats<Bfloat16>>; break;
  }
  run(masks, mask_stride, row_stride, column_stride, count, height, width, cuts, bits, extents, stream);
}

}  // namespace pixelrefer_fast::cuda
