#include "ops.h"
#include "wide.h"

// a Wide is passed between functions that are inlined, and so never as what an ABI would have to say
#pragma GCC diagnostic ignored "-Wpsabi"

namespace pixelrefer_fast::cpu {

#if defined(__x86_64__)
namespace avx512 {
#define PIXELREFER_FAST_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))
#define PIXELREFER_FAST_FMA(a, b, c) (Wide) _mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c)
#include "dense.h"
#undef PIXELREFER_FAST_TARGET
#undef PIXELREFER_FAST_FMA
}  // namespace avx512

namespace avx2 {
#define PIXELREFER_FAST_TARGET __attribute__((target("avx2,fma")))
static inline __attribute__((always_inline)) PIXELREFER_FAST_TARGET Wide halves_fma(Wide a, Wide b, Wide c) {
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  std::memcpy(z, &c, sizeof z);
  for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  std::memcpy(&c, z, sizeof c);
  return c;
}
#define PIXELREFER_FAST_FMA(a, b, c) halves_fma(a, b, c)
#include "dense.h"
#undef PIXELREFER_FAST_TARGET
#undef PIXELREFER_FAST_FMA
}  // namespace avx2
#endif

namespace plain {
#define PIXELREFER_FAST_TARGET
#define PIXELREFER_FAST_FMA(a, b, c) a * b + c
#include "dense.h"
#undef PIXELREFER_FAST_TARGET
#undef PIXELREFER_FAST_FMA
}  // namespace plain

namespace {

Registers found() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return !fma ? kPlain : wide ? kAvx512 : kAvx2;
#else
  return kPlain;
#endif
}

Registers& registers() {
  static Registers used = found();
  return used;
}

}  // namespace

bool use_registers(Registers kind) {
  if (kind > found()) return false;
  registers() = kind;
  return true;
}

#if defined(__x86_64__)
#define PIXELREFER_FAST_CHOOSE(call)   \
  switch (registers()) {               \
    case kAvx512: return avx512::call; \
    case kAvx2: return avx2::call;     \
    case kPlain: return plain::call;   \
  }
#else
#define PIXELREFER_FAST_CHOOSE(call) return plain::call;
#endif

void bias_gelu(float* x, const float* bias, int64_t width, int64_t begin, int64_t end) {
  PIXELREFER_FAST_CHOOSE(bias_gelu(x, bias, width, begin, end))
}

void add_norm(const float* x, const float* delta, const float* weight, const float* bias, float eps, float* summed,
              float* normed, int64_t width, int64_t begin, int64_t end) {
  PIXELREFER_FAST_CHOOSE(add_norm(x, delta, weight, bias, eps, summed, normed, width, begin, end))
}

int64_t first_bad_place(const int32_t* places, int64_t count, int64_t most) {
  for (int64_t i = 0; i < count; ++i)
    if (places[i] < 0 || places[i] >= most) return i;
  return -1;
}

void rope2d(float* qkv, int64_t stride, const float* bias, const int32_t* rows, const int32_t* columns,
            const float* cos, const float* sin, int64_t heads, int64_t head_dim, int64_t begin, int64_t end) {
  PIXELREFER_FAST_CHOOSE(rope2d(qkv, stride, bias, rows, columns, cos, sin, heads, head_dim, begin, end))
}

}  // namespace pixelrefer_fast::cpu
