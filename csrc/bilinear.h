// A mask of 0 and 1 resized bilinearly, half-pixel centres, no antialias, in whole numbers: nothing rounds on the way, so
// that a device and a host cannot differ. What the results mean stands in pixelrefer_fast/ops/mask_grids.py.
#pragma once

#include <cstdint>

#include "portable.h"

namespace pixelrefer_fast {

// Columns of a mask's row in the table of ops/mask_grids.py.
constexpr int kMaskColumns = 15;
enum MaskColumn {
  kFirstCell, kFirstBit, kRowBits, kTop, kLeft, kRows, kColumns,
  kCropTop, kCropLeft, kCropBottom, kCropRight, kGridRows, kGridColumns, kDownBits, kAcrossBits
};
constexpr int64_t kMostSide = int64_t{1} << 30;      // of windows and crops
constexpr int64_t kMostGridSide = int64_t{1} << 20;  // twice the product of both is exact as a double
constexpr int64_t kMostBits = 15;                    // of integer weights

// a / b for 0 <= a < 2^52 and b > 0. The quotient of doubles is never rounded up to a whole number, and a device takes
// fewer registers for it than for a division of 64 bits.
PIXELREFER_FAST_BOTH int64_t quotient(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<double>(a) / static_cast<double>(b));
}

// An output place reads `low` and, with the weight rest / (2 * size), the place after it.
struct Taps {
  int64_t low, rest;
};

PIXELREFER_FAST_BOTH Taps taps_of(int64_t place, int64_t size, int64_t source) {
  const int64_t at = (2 * place + 1) * source - size;  // times 1 / (2 * size)
  if (at <= 0) return {0, 0};
  const int64_t low = quotient(at, 2 * size);
  if (low >= source - 1) return {source - 1, 0};
  return {low, at - low * (2 * size)};
}

// A pass over two pixels of 0 and 1, whose sum of weights is rounded.
PIXELREFER_FAST_BOTH int rounded(int low, int high, int64_t rest, int64_t size, int bits) {
  int sum = 1 << (bits - 1);
  if (high) sum += static_cast<int>(quotient((rest << bits) + size, 2 * size));
  if (low) sum += static_cast<int>(quotient(((2 * size - rest) << bits) + size, 2 * size));
  return sum >> bits;
}

// The mask's bits, of which those outside the window, or outside the buffer, are 0.
struct MaskWindow {
  const uint8_t* bits;
  int64_t bytes;
  const int64_t* mask;  // its row of the table

  PIXELREFER_FAST_BOTH int at(int64_t row, int64_t column) const {
    row += mask[kCropTop] - mask[kTop];
    column += mask[kCropLeft] - mask[kLeft];
    if (row < 0 || row >= mask[kRows] || column < 0 || column >= mask[kColumns]) return 0;
    const int64_t place = mask[kFirstBit] + row * mask[kRowBits] + column;
    if (place < 0 || place >> 3 >= bytes) return 0;
    return bits[place >> 3] >> (7 - (place & 7)) & 1;
  }

  PIXELREFER_FAST_BOTH float cell(int64_t row, int64_t column) const {
    const int64_t rows = mask[kGridRows], columns = mask[kGridColumns];
    const Taps down = taps_of(row, rows, mask[kCropBottom] - mask[kCropTop]);
    const Taps across = taps_of(column, columns, mask[kCropRight] - mask[kCropLeft]);
    // a place without weight may not exist
    const bool lower = down.rest > 0, right = across.rest > 0;
    const int a = at(down.low, across.low), b = right ? at(down.low, across.low + 1) : 0;
    const int c = lower ? at(down.low + 1, across.low) : 0, d = lower && right ? at(down.low + 1, across.low + 1) : 0;
    if (mask[kDownBits] > 0) {
      const int bits_across = static_cast<int>(mask[kAcrossBits]);
      const int above = rounded(a, b, across.rest, columns, bits_across);
      const int below = rounded(c, d, across.rest, columns, bits_across);
      return static_cast<float>(rounded(above, below, down.rest, rows, static_cast<int>(mask[kDownBits])));
    }
    const int64_t left = 2 * columns - across.rest, above = left * a + across.rest * b, below = left * c + across.rest * d;
    const int64_t sum = (2 * rows - down.rest) * above + down.rest * below;
    return static_cast<float>(static_cast<double>(sum) / static_cast<double>(4 * rows * columns));
  }
};

}  // namespace pixelrefer_fast
