#include <initializer_list>

#include "../bilinear.h"
#include "ops.h"

namespace pixelrefer_fast::cpu {

int64_t first_bad_mask(const int64_t* table, int64_t masks, int64_t bytes, int64_t cells) {
  int64_t first = 0;
  for (int64_t m = 0; m < masks; ++m) {
    const int64_t* mask = table + m * kMaskColumns;
    for (const int column : {kGridRows, kGridColumns}) {
      if (mask[column] < 0 || mask[column] > kMostGridSide) return m;
    }
    for (const int column : {kTop, kLeft, kRows, kColumns, kCropTop, kCropLeft, kCropBottom, kCropRight}) {
      if (mask[column] < 0 || mask[column] > kMostSide) return m;
    }
    for (const int column : {kDownBits, kAcrossBits}) {
      if (mask[column] < 0 || mask[column] > kMostBits || (mask[column] == 0) != (mask[kDownBits] == 0)) return m;
    }
    if (mask[kCropBottom] < mask[kCropTop] || mask[kCropRight] < mask[kCropLeft]) return m;
    if (mask[kFirstCell] != first) return m;
    first += mask[kGridRows] * mask[kGridColumns];
    if (first > cells) return m;
    if (mask[kRows] == 0 || mask[kColumns] == 0) continue;
    if (mask[kFirstBit] < 0 || mask[kRowBits] < mask[kColumns] || mask[kRowBits] > 8 * kMostSide) return m;
    const int64_t last = (mask[kRows] - 1) * mask[kRowBits] + mask[kColumns];  // below 2^63: 2^30 * 2^33
    if (mask[kFirstBit] > 8 * bytes || last > 8 * bytes - mask[kFirstBit]) return m;
  }
  return first == cells ? -1 : masks;
}

void mask_grids(const uint8_t* bits, int64_t bytes, const int64_t* table, int64_t masks, float* cells) {
  for (int64_t m = 0; m < masks; ++m) {
    const int64_t* mask = table + m * kMaskColumns;
    const MaskWindow window{bits, bytes, mask};
    const int64_t rows = mask[kGridRows], columns = mask[kGridColumns];
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) *cells++ = window.cell(r, c);
    }
  }
}

}  // namespace pixelrefer_fast::cpu
