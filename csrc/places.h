// One selected patch: the feature rows that it reads, their weights, and where it lies in the image. What the results
// mean stands in pixelrefer_fast/ops/place_patches.py. Each operation rounds for itself, as torch's do.
#pragma once

#include <cstdint>

#include "portable.h"

namespace pixelrefer_fast {

// Columns of a mark's row in the table of ops/place_patches.py.
constexpr int kMarkColumns = 11;
enum MarkColumn {
  kFirstPatch, kFeatureRows, kFeatureColumns, kMarkGridRows, kMarkGridColumns, kBox0, kBox1, kBox2, kBox3, kHeight, kWidth
};

#ifdef __CUDA_ARCH__
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
#else
PIXELREFER_FAST_BOTH float times(float a, float b) { return a * b; }  // -ffp-contract=off: never with a sum
PIXELREFER_FAST_BOTH float plus(float a, float b) { return a + b; }
#endif

struct Neighbours {
  int64_t low, high;
  float weight;  // of high
};

PIXELREFER_FAST_BOTH Neighbours neighbours(int32_t place, int64_t size, int64_t source) {
  const float scale = static_cast<float>(source) / static_cast<float>(size);
  float at = plus(times(scale, plus(static_cast<float>(place), 0.5f)), -0.5f);
  if (!(at > 0)) at = 0;
  const int64_t low = static_cast<int64_t>(at), high = low + 1 < source ? low + 1 : source - 1;
  return {low, high, plus(at, -static_cast<float>(low))};
}

// Of a row or column, along the image's side `length` from `low` to `high` of the box.
PIXELREFER_FAST_BOTH float position(int64_t place, int64_t places, int64_t low, int64_t high, int64_t length) {
  const float share = static_cast<float>(place) / static_cast<float>(places);
  const float span = plus(static_cast<float>(high), -static_cast<float>(low));
  const float last = plus(static_cast<float>(length), -1.0f);
  return plus(times(share, span), static_cast<float>(low)) / (last > 1 ? last : 1.0f);
}

PIXELREFER_FAST_BOTH void place_patch(const int64_t* mark, int32_t row, int32_t column, int64_t corners, int64_t* index,
                                      float* weights, float* positions) {
  const int64_t rows = mark[kFeatureRows], columns = mark[kFeatureColumns];
  const auto x = [&](int64_t c) { return position(c, columns, mark[kBox0], mark[kBox2], mark[kWidth]); };
  const auto y = [&](int64_t r) { return position(r, rows, mark[kBox1], mark[kBox3], mark[kHeight]); };
  if (corners == 1) {
    index[0] = mark[kFirstPatch] + row * columns + column;
    weights[0] = 1;
    positions[0] = x(column);
    positions[1] = y(row);
    return;
  }
  const Neighbours down = neighbours(row, mark[kMarkGridRows], rows);
  const Neighbours across = neighbours(column, mark[kMarkGridColumns], columns);
  float along[2] = {0, 0};
  for (int corner = 0; corner < 4; ++corner) {
    const bool lower = corner < 2, left = corner % 2 == 0;
    const int64_t r = lower ? down.low : down.high, c = left ? across.low : across.high;
    const float weight = times(lower ? plus(1, -down.weight) : down.weight,
                               left ? plus(1, -across.weight) : across.weight);
    index[corner] = mark[kFirstPatch] + r * columns + c;
    weights[corner] = weight;
    const float part[2] = {times(x(c), weight), times(y(r), weight)};
    for (int axis = 0; axis < 2; ++axis) along[axis] = corner == 0 ? part[axis] : plus(along[axis], part[axis]);
  }
  positions[0] = along[0];
  positions[1] = along[1];
}

}  // namespace pixelrefer_fast
