#include <algorithm>

#include "ops.h"

namespace pixelrefer_fast::cpu {
namespace {

template <typename Values>
void pack(const void* masks, const int64_t* strides, int64_t count, int64_t height, int64_t width, const float* cuts,
          uint8_t* bits, int64_t* extents) {
  using Raw = typename Values::Raw;
  const int64_t row_bytes = (width + 7) / 8;
  std::fill(bits, bits + count * height * row_bytes, uint8_t{0});
  std::fill(extents, extents + count * kExtents, int64_t{0});
  for (int64_t m = 0; m < count; ++m) {
    int64_t* extent = extents + m * kExtents;
    uint64_t highest = 0, lowest = 0, digests[kDigests] = {};
    for (int64_t r = 0; r < height; ++r, bits += row_bytes) {
      const Raw* line = static_cast<const Raw*>(masks) + m * strides[0] + r * strides[1];
      int64_t area = 0, first = width, last = -1;
      for (int64_t c = 0; c < width; ++c) {
        const Raw value = line[c * strides[2]];
        if (!Values::finite(value)) extent[kUnfinite] = 1;
        if (!Values::marked(value, cuts[m])) continue;
        bits[c / 8] |= static_cast<uint8_t>(128 >> c % 8);
        ++area;
        first = std::min(first, c);
        last = c;
        if (Values::kFloats) continue;
        highest = std::max(highest, highest_word(Values::number(value)));
        lowest = std::max(lowest, lowest_word(Values::number(value)));
      }
      if (area == 0) continue;
      extent[kArea] += area;
      extent[kBelow] = std::max(extent[kBelow], height - r);
      extent[kBeyond] = std::max(extent[kBeyond], width - first);
      extent[kBottom] = r + 1;
      extent[kRight] = std::max(extent[kRight], last + 1);
      for (int64_t b = first / 8; b <= last / 8; ++b) {
        for (int i = 0; i < kDigests; ++i) digests[i] += digest_part(bits[b], r * row_bytes + b, i);
      }
    }
    extent[kHighest] = static_cast<int64_t>(highest);
    extent[kLowest] = static_cast<int64_t>(lowest);
    for (int i = 0; i < kDigests; ++i) extent[kDigest + i] = static_cast<int64_t>(digests[i]);
  }
}

}  // namespace

void pack_masks(const void* masks, MaskType type, const int64_t* strides, int64_t count, int64_t height, int64_t width,
                const float* cuts, uint8_t* bits, int64_t* extents) {
  auto* run = pack<Integers<uint8_t>>;
  switch (type) {
    case MaskType::kByte: break;
    case MaskType::kInt: run = pack<Integers<int32_t>>; break;
    case MaskType::kLong: run = pack<Integers<int64_t>>; break;
    case MaskType::kFloat: run = pack<Floats<Single>>; break;
    case MaskType::kHalf: run = pack<Floats<Half>>; break;
    case MaskType::kBfloat16: run = pack<Floats<Bfloat16>>; break;
  }
  run(masks, strides, count, height, width, cuts, bits, extents);
}

}  // namespace pixelrefer_fast::cpu
