#include <algorithm>

#include "../places.h"
#include "ops.h"

namespace pixelrefer_fast::cpu {

void place_patches(const int32_t* row, const int32_t* column, const int64_t* offsets, const int64_t* table,
                   int64_t marks, int64_t slots, int64_t corners, int64_t nowhere, int64_t* index, float* weights,
                   float* positions) {
  int64_t slot = 0;
  for (int64_t m = 0; m < marks; ++m) {
    for (const int64_t end = std::min(offsets[m + 1], slots); slot < end; ++slot) {
      place_patch(table + m * kMarkColumns, row[slot], column[slot], corners, index + slot * corners,
                  weights + slot * corners, positions + slot * 2);
    }
  }
  std::fill(index + slot * corners, index + slots * corners, nowhere);
  std::fill(weights + slot * corners, weights + slots * corners, 0.0f);
  std::fill(positions + slot * 2, positions + slots * 2, 0.0f);
}

}  // namespace pixelrefer_fast::cpu
