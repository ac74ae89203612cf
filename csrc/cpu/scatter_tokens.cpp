#include <cstring>

#include "ops.h"

namespace pixelrefer_fast::cpu {

int64_t first_bad_slot(const int64_t* slots, int64_t tokens, int64_t length) {
  for (int64_t t = 0; t < tokens; ++t)
    if (slots[t] < -1 || slots[t] >= length) return t;
  return -1;
}

void scatter_tokens(char* embeds, int64_t embeds_stride, const char* tokens, int64_t tokens_stride,
                    const int64_t* slots, int64_t begin, int64_t end, int64_t row_bytes) {
  if (row_bytes == 0) return;
  for (int64_t t = begin; t < end; ++t)
    if (slots[t] >= 0) std::memcpy(embeds + slots[t] * embeds_stride, tokens + t * tokens_stride, row_bytes);
}

void gather_tokens(const char* embeds, int64_t embeds_stride, char* tokens, int64_t tokens_stride,
                   const int64_t* slots, int64_t begin, int64_t end, int64_t row_bytes) {
  if (row_bytes == 0) return;
  for (int64_t t = begin; t < end; ++t) {
    char* token = tokens + t * tokens_stride;
    if (slots[t] >= 0) {
      std::memcpy(token, embeds + slots[t] * embeds_stride, row_bytes);
    } else {
      std::memset(token, 0, row_bytes);
    }
  }
}

}  // namespace pixelrefer_fast::cpu
