#include <algorithm>
#include <limits>

#include "ops.h"

namespace pixelrefer_fast::cpu {

int64_t grid_cells(const int64_t* grid_shapes, int64_t objects) {
  constexpr int64_t side_max = std::numeric_limits<int32_t>::max();
  constexpr int64_t most = int64_t{1} << 62;
  int64_t cells = 0;
  for (int64_t i = 0; i < objects; ++i) {
    const int64_t rows = grid_shapes[2 * i], columns = grid_shapes[2 * i + 1];
    if (rows < 0 || columns < 0 || rows > side_max || columns > side_max) return -1;
    cells = std::min(most, cells + rows * columns);  // both below 2^62
  }
  return cells;
}

void pack_objects(const float* mask_grids, const int64_t* grid_shapes, int64_t objects, int64_t capacity,
                  int64_t* cell, int32_t* row, int32_t* column, int64_t* counts, int64_t* offsets) {
  int64_t place = 0;   // of the cell among all
  int64_t packed = 0;  // selected so far, written or not
  for (int64_t i = 0; i < objects; ++i) {
    const int64_t rows = grid_shapes[2 * i], columns = grid_shapes[2 * i + 1];
    offsets[i] = packed;
    for (int64_t r = 0; r < rows && columns > 0; ++r) {
      const float* line = mask_grids + place;
      if (packed + columns <= capacity) {
        // There is room for the whole line: write every cell and keep the selected ones. No branch to predict.
        for (int64_t c = 0; c < columns; ++c) {
          cell[packed] = place + c;
          row[packed] = static_cast<int32_t>(r);
          column[packed] = static_cast<int32_t>(c);
          packed += line[c] > 0;
        }
      } else {
        for (int64_t c = 0; c < columns; ++c) {
          if (!(line[c] > 0)) continue;
          if (packed < capacity) {
            cell[packed] = place + c;
            row[packed] = static_cast<int32_t>(r);
            column[packed] = static_cast<int32_t>(c);
          }
          ++packed;
        }
      }
      place += columns;
    }
    counts[i] = packed - offsets[i];
  }
  offsets[objects] = packed;
  const int64_t written = std::min(packed, capacity);
  std::fill(cell + written, cell + capacity, -1);
  std::fill(row + written, row + capacity, -1);
  std::fill(column + written, column + capacity, -1);
}

}  // namespace pixelrefer_fast::cpu
