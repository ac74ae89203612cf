// What a mask's values mark: integers other than 0, floats above a cut.
#pragma once

#include <cstdint>
#include <cstring>

#include "portable.h"

namespace pixelrefer_fast {

enum class MaskType { kByte, kInt, kLong, kFloat, kHalf, kBfloat16 };

// Numbers of one mask, maxima and sums that begin with 0 (ops/pack_masks.py).
constexpr int kExtents = 10;
enum Extent { kArea, kBelow, kBeyond, kBottom, kRight, kHighest, kLowest, kUnfinite, kDigest, kDigest2 };
constexpr int kDigests = 2;

PIXELREFER_FAST_BOTH float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

template <typename Raw_>
struct Integers {
  using Raw = Raw_;
  static constexpr bool kFloats = false;
  static PIXELREFER_FAST_BOTH bool marked(Raw value, float) { return value != 0; }
  static PIXELREFER_FAST_BOTH bool finite(Raw) { return true; }
  static PIXELREFER_FAST_BOTH int64_t number(Raw value) { return value; }
};

template <typename Format>
struct Floats {
  using Raw = typename Format::Raw;
  static constexpr bool kFloats = true;
  static PIXELREFER_FAST_BOTH bool marked(Raw value, float cut) { return Format::value(value) > cut; }
  static PIXELREFER_FAST_BOTH bool finite(Raw value) {
    const float number = Format::value(value);
    return number - number == 0;
  }
  static PIXELREFER_FAST_BOTH int64_t number(Raw) { return 0; }
};

struct Single {
  using Raw = float;
  static PIXELREFER_FAST_BOTH float value(Raw value) { return value; }
};

struct Bfloat16 {
  using Raw = uint16_t;
  static PIXELREFER_FAST_BOTH float value(Raw bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }
};

struct Half {
  using Raw = uint16_t;
  static PIXELREFER_FAST_BOTH float value(Raw bits) {
    const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023u;
    if (exponent == 0) {  // fraction * 2^-24 is a normal float
      const float small = static_cast<float>(fraction) * 5.9604644775390625e-8f;
      return sign ? -small : small;
    }
    return float_of_bits(sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13);
  }
};

// Highest and lowest value as words whose maximum is taken as of numbers without a sign, and which are never below 0.
PIXELREFER_FAST_BOTH uint64_t highest_word(int64_t value) { return static_cast<uint64_t>(value) ^ uint64_t{1} << 63; }
PIXELREFER_FAST_BOTH uint64_t lowest_word(int64_t value) { return ~highest_word(value); }

// What a byte of a mask's bits adds to one of the words that tell its content: a multiple of a word that its place among
// the mask's bytes decides (splitmix64: Steele, Lea and Flood 2014), so that their sum is the same in any order.
PIXELREFER_FAST_BOTH uint64_t digest_part(uint8_t bits, int64_t place, int which) {
  uint64_t word = (2 * static_cast<uint64_t>(place) + which + 1) * 0x9e3779b97f4a7c15u;
  word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
  word = (word ^ word >> 27) * 0x94d049bb133111ebu;
  return bits * (word ^ word >> 31);
}

}  // namespace pixelrefer_fast
