// Row by row what comes between the encoder's products. Included by dense.cpp once for each kind of register, with
// PIXELREFER_FAST_TARGET, PIXELREFER_FAST_FMA (a * b + c of Wides) and a namespace of its own.
// A row's result depends on that row alone: not on how many there are, nor on which thread has it.

#define PIXELREFER_FAST_INLINE static inline __attribute__((always_inline)) PIXELREFER_FAST_TARGET

PIXELREFER_FAST_INLINE Wide load(const float* from) {
  Wide value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

PIXELREFER_FAST_INLINE void store(float* to, Wide value) { std::memcpy(to, &value, sizeof value); }

// the last vector of a row; zeros behind it
PIXELREFER_FAST_INLINE Wide load_some(const float* from, int64_t count) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return load(lanes);
}

PIXELREFER_FAST_INLINE void store_some(float* to, Wide value, int64_t count) {
  float lanes[kLanes];
  store(lanes, value);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

PIXELREFER_FAST_INLINE Wide all(float value) { return value - Wide{}; }

PIXELREFER_FAST_INLINE Wide multiply_add(Wide a, Wide b, Wide c) { return PIXELREFER_FAST_FMA(a, b, c); }

PIXELREFER_FAST_INLINE float sum(Wide value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// e^x of -87 to 88, where neither end leaves the normal numbers; off by 2 units of the last place at most. Of NaN, NaN.
PIXELREFER_FAST_INLINE Wide exponential(Wide x) {
  x = x < -87.0f ? all(-87.0f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  const Wide shift = all(12582912.0f);  // 1.5 * 2^23: the sum's last bits are the nearest integer
  const Wide shifted = multiply_add(x, all(1.44269504f), shift);
  const Wide n = shifted - shift;
  // ln 2 in two parts, the first of so few bits that its product is exact
  Wide r = multiply_add(n, all(-0.693359375f), x);
  r = multiply_add(n, all(2.12194440e-4f), r);
  Wide p = all(1.9875691500e-4f);
  p = multiply_add(p, r, all(1.3981999507e-3f));
  p = multiply_add(p, r, all(8.3334519073e-3f));
  p = multiply_add(p, r, all(4.1665795894e-2f));
  p = multiply_add(p, r, all(1.6666665459e-1f));
  p = multiply_add(p, r, all(5.0000001201e-1f));
  p = multiply_add(p, r * r, r) + 1.0f;
  WideBits exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent - 0x4b400000u + 127u) << 23;
  Wide scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return p * scale;
}

// 0.5 x (1 + tanh u) is x / (1 + e^(-2u)), which loses nothing where tanh is near -1
PIXELREFER_FAST_INLINE Wide gelu(Wide x) {
  const Wide u = x * multiply_add(x * x, all(-2 * 0.7978845608f * 0.044715f), all(-2 * 0.7978845608f));
  // far below, where the power's end would be too small a divisor; what is not finite stays so
  return x < -1e4f ? x * 0.0f : x / (1.0f + exponential(u));
}

PIXELREFER_FAST_TARGET void bias_gelu(float* x, const float* bias, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* own = x + row * width;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store(own + i, gelu(load(own + i) + load(bias + i)));
    if (i < width) store_some(own + i, gelu(load_some(own + i, width - i) + load_some(bias + i, width - i)), width - i);
  }
}

PIXELREFER_FAST_TARGET void add_norm(const float* x, const float* delta, const float* weight, const float* bias,
                                     float eps, float* summed, float* normed, int64_t width, int64_t begin,
                                     int64_t end) {
  const int64_t whole = width / kLanes * kLanes, rest = width - whole;
  for (int64_t row = begin; row < end; ++row) {
    const float *a = x + row * width, *b = delta + row * width;
    float *to = summed + row * width, *out = normed + row * width;
    Wide total = {};
    for (int64_t i = 0; i < whole; i += kLanes) {
      const Wide own = load(a + i) + load(b + i);
      store(to + i, own);
      total += own;
    }
    if (rest) {
      const Wide own = load_some(a + whole, rest) + load_some(b + whole, rest);
      store_some(to + whole, own, rest);
      total += own;
    }
    const float mean = sum(total) / static_cast<float>(width);
    Wide squares = {};
    for (int64_t i = 0; i < whole; i += kLanes) {
      const Wide off = load(to + i) - mean;
      squares = multiply_add(off, off, squares);
    }
    float variance = sum(squares);
    for (int64_t i = whole; i < width; ++i) variance += (to[i] - mean) * (to[i] - mean);
    variance /= static_cast<float>(width);
    const float scale = 1.0f / __builtin_sqrtf(variance + eps);
    for (int64_t i = 0; i < whole; i += kLanes)
      store(out + i, multiply_add((load(to + i) - mean) * scale, load(weight + i), load(bias + i)));
    if (rest) {
      const Wide own = (load_some(to + whole, rest) - mean) * scale;
      store_some(out + whole, multiply_add(own, load_some(weight + whole, rest), load_some(bias + whole, rest)), rest);
    }
  }
}

// One head: element i turns with element i + half.
PIXELREFER_FAST_INLINE void turn(float* x, const float* bias, const float* cos, const float* sin, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Wide first = load(x + i) + load(bias + i), second = load(x + half + i) + load(bias + half + i);
    const Wide c = load(cos + i), s = load(sin + i);
    store(x + i, multiply_add(second, -s, first * c));
    store(x + half + i, multiply_add(first, s, second * c));
  }
  if (i == half) return;
  const int64_t rest = half - i;
  const Wide first = load_some(x + i, rest) + load_some(bias + i, rest);
  const Wide second = load_some(x + half + i, rest) + load_some(bias + half + i, rest);
  const Wide c = load_some(cos + i, rest), s = load_some(sin + i, rest);
  store_some(x + i, multiply_add(second, -s, first * c), rest);
  store_some(x + half + i, multiply_add(first, s, second * c), rest);
}

PIXELREFER_FAST_TARGET void rope2d(float* qkv, int64_t stride, const float* bias, const int32_t* rows,
                                   const int32_t* columns, const float* cos, const float* sin, int64_t heads,
                                   int64_t head_dim, int64_t begin, int64_t end) {
  const int64_t half = head_dim / 2, quarter = head_dim / 4, width = heads * head_dim;
  float c[kMostHeadDim / 2], s[kMostHeadDim / 2];
  for (int64_t p = begin; p < end; ++p) {
    const int64_t row = rows[p] * quarter, column = columns[p] * quarter;
    for (int64_t i = 0; i < quarter; ++i) {
      c[i] = cos[row + i];
      c[quarter + i] = cos[column + i];
      s[i] = sin[row + i];
      s[quarter + i] = sin[column + i];
    }
    float* own = qkv + p * stride;
    for (int64_t h = 0; h < 2 * heads; ++h) turn(own + h * head_dim, bias + h * head_dim, c, s, half);
    float* values = own + 2 * width;
    const float* added = bias + 2 * width;
    for (int64_t i = 0; i < width; ++i) values[i] += added[i];
  }
}

#undef PIXELREFER_FAST_INLINE
