// Selected patches to the feature rows that they read: a thread takes one patch, whose mark a binary search finds.
#include "../places.h"
#include "ops.h"
#include "scan.cuh"

#include <algorithm>

namespace pixelrefer_fast::cuda {
namespace {

constexpr int64_t kMostBlocks = 1 << 16;

__global__ void __launch_bounds__(kThreads) place(
    const int32_t* __restrict__ row,      // (slots,)
    const int32_t* __restrict__ column,   // (slots,)
    const int64_t* __restrict__ offsets,  // (marks + 1,)
    const int64_t* __restrict__ table,    // (marks, kMarkColumns)
    int64_t marks,
    int64_t slots,
    int64_t corners,
    int64_t nowhere,
    int64_t* __restrict__ index,   // (slots, corners)
    float* __restrict__ weights,   // (slots, corners)
    float* __restrict__ positions  // (slots, 2)
) {
  for (int64_t slot = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; slot < slots;
       slot += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t mark = upper_bound(offsets, 1, marks + 1, slot) - 1;
    if (mark < marks) {
      place_patch(table + mark * kMarkColumns, row[slot], column[slot], corners, index + slot * corners,
                  weights + slot * corners, positions + slot * 2);
      continue;
    }
    for (int64_t corner = 0; corner < corners; ++corner) {
      index[slot * corners + corner] = nowhere;
      weights[slot * corners + corner] = 0;
    }
    positions[slot * 2] = positions[slot * 2 + 1] = 0;
  }
}

}  // namespace

void place_patches(const int32_t* row, const int32_t* column, const int64_t* offsets, const int64_t* table,
                   int64_t marks, int64_t slots, int64_t corners, int64_t nowhere, int64_t* index, float* weights,
                   float* positions, cudaStream_t stream) {
  if (slots == 0) return;
  launch(place, std::min(kMostBlocks, (slots + kThreads - 1) / kThreads), kThreads, stream, row, column, offsets, table,
         marks, slots, corners, nowhere, index, weights, positions);
}

}  // namespace pixelrefer_fast::cuda
