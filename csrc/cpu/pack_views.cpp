#include <algorithm>
#include <limits>

#include "ops.h"

namespace pixelrefer_fast::cpu {

int64_t first_bad_view(const int64_t* grids, int64_t views) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  int64_t patches = 0;
  for (int64_t i = 0; i < views; ++i) {
    const int64_t rows = grids[3 * i], columns = grids[3 * i + 1], merge = grids[3 * i + 2];
    if (merge != 1 && merge != 2) return i;
    if (rows < 0 || columns < 0 || rows > most || columns > most || rows % merge || columns % merge) return i;
    patches += rows * columns;  // at most 2^31 + 2^62
    if (patches > most) return i;
  }
  return -1;
}

void pack_views(const int64_t* grids, int64_t views, int64_t patches, int32_t* row, int32_t* column,
                int32_t* sequence, int32_t* cu_seqlens, int32_t* longest) {
  int64_t first = 0;
  longest[0] = 0;
  for (int64_t i = 0; i < views; ++i) {
    const int64_t rows = grids[3 * i], columns = grids[3 * i + 1], merge = grids[3 * i + 2];
    const int64_t size = rows * columns;
    const int64_t room = std::clamp<int64_t>(patches - first, 0, size);
    cu_seqlens[i] = static_cast<int32_t>(first);
    longest[0] = std::max(longest[0], static_cast<int32_t>(size));

    // row and column of the block's first patch, and the place in the block
    int64_t block_row = 0, block_column = 0, down = 0, right = 0;
    for (int64_t p = first; p < first + room; ++p) {
      row[p] = static_cast<int32_t>(block_row + down);
      column[p] = static_cast<int32_t>(block_column + right);
      sequence[p] = static_cast<int32_t>(i);
      if (++right < merge) continue;
      right = 0;
      if (++down < merge) continue;
      down = 0;
      if ((block_column += merge) < columns) continue;
      block_column = 0;
      block_row += merge;
    }
    first += size;
  }
  cu_seqlens[views] = static_cast<int32_t>(first);
  const int64_t written = std::min(first, patches);
  std::fill(row + written, row + patches, 0);
  std::fill(column + written, column + patches, 0);
  std::fill(sequence + written, sequence + patches, static_cast<int32_t>(views));
}

}  // namespace pixelrefer_fast::cpu
