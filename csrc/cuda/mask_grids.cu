// Bits of masks to their grids at patch resolution: a thread makes one cell, from at most four bits.
#include "../bilinear.h"
#include "ops.h"
#include "scan.cuh"

#include <algorithm>

namespace pixelrefer_fast::cuda {
namespace {

constexpr int64_t kMostBlocks = 1 << 16;

// The last mask whose cells begin at `cell` or before; -1 if there is none.
__device__ __forceinline__ int64_t mask_of(const int64_t* table, int64_t masks, int64_t cell) {
  int64_t low = 0, high = masks;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (table[middle * kMaskColumns + kFirstCell] > cell) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low - 1;
}

__device__ __forceinline__ bool is_within(int64_t value, int64_t most) { return value >= 0 && value <= most; }

__global__ void __launch_bounds__(kThreads) draw_cells(
    const uint8_t* __restrict__ bits,   // (bytes,)
    int64_t bytes,
    const int64_t* __restrict__ table,  // (masks, kMaskColumns)
    int64_t masks,
    int64_t count,
    float* __restrict__ cells  // (count,)
) {
  for (int64_t place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; place < count;
       place += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t owner = mask_of(table, masks, place);
    float value = 0;
    if (owner >= 0) {
      const int64_t* mask = table + owner * kMaskColumns;
      const int64_t rows = mask[kGridRows], columns = mask[kGridColumns], inside = place - mask[kFirstCell];
      const int64_t down = mask[kCropBottom] - mask[kCropTop], across = mask[kCropRight] - mask[kCropLeft];
      // a table that a host would refuse draws nothing
      const bool drawn = is_within(rows, kMostGridSide) && is_within(columns, kMostGridSide) && is_within(down, kMostSide) &&
                         is_within(across, kMostSide) && is_within(mask[kDownBits], kMostBits) &&
                         is_within(mask[kAcrossBits], kMostBits);
      if (drawn && inside < rows * columns) {
        const int64_t row = quotient(inside, columns);
        value = MaskWindow{bits, bytes, mask}.cell(row, inside - row * columns);
      }
    }
    cells[place] = value;
  }
}

}  // namespace

void mask_grids(const uint8_t* bits, int64_t bytes, const int64_t* table, int64_t masks, int64_t count,
                float* cells, cudaStream_t stream) {
  if (count == 0) return;
  launch(draw_cells, std::min(kMostBlocks, (count + kThreads - 1) / kThreads), kThreads, stream, bits, bytes, table,
         masks, count, cells);
}

}  // namespace pixelrefer_fast::cuda
