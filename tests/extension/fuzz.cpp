// Random ragged inputs through the CPU implementation and through the CUDA kernels on the CPU, against plain loops.
// Built with AddressSanitizer and UndefinedBehaviorSanitizer; every array is exactly as long as it may be.
//   fuzz CPU_CASES CUDA_CASES
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "bilinear.h"
#include "cpu/ops.h"
#include "cuda/ops.h"
#include "cuda/scan.cuh"
#include "places.h"

using namespace pixelrefer_fast;

namespace {

constexpr int64_t kUnwritten = 0x5a5a5a5a;  // what outputs hold before
std::mt19937_64 generator(20261122);

int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

// exactly sized memory of its own, so that a step outside is seen; a vector may have room to spare
template <typename T>
struct Array {
  explicit Array(int64_t size, T value = static_cast<T>(kUnwritten)) : length(size), data(new T[size]) {
    std::fill(data, data + size, value);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { delete[] data; }
  T& operator[](int64_t i) { return data[i]; }

  int64_t length;
  T* data;
};

template <typename T>
void expect(const char* what, const Array<T>& given, const std::vector<T>& wanted) {
  for (int64_t i = 0; i < given.length; ++i) {
    if (given.data[i] == wanted[i]) continue;
    std::fprintf(stderr, "%s[%ld]: expected %ld, got %ld\n", what, static_cast<long>(i), static_cast<long>(wanted[i]),
                 static_cast<long>(given.data[i]));
    std::exit(1);
  }
}

int64_t draw_side() {
  switch (draw(0, 9)) {
    case 0: return 0;
    case 1: return draw(30, 70);
    default: return draw(1, 12);
  }
}

void fuzz_pack_objects(bool on_cuda) {
  const int64_t objects = draw(0, 12) == 0 ? draw(1000, 2100) : draw(0, 20);
  const bool tiny = objects > 100;
  Array<int64_t> shapes(2 * objects);
  int64_t cells = 0;
  for (int64_t i = 0; i < objects; ++i) {
    shapes[2 * i] = tiny ? draw(0, 2) : draw_side();
    shapes[2 * i + 1] = tiny ? draw(0, 3) : draw_side();
    cells += shapes[2 * i] * shapes[2 * i + 1];
  }
  const int64_t spare = draw(0, 2) == 0 ? draw(0, 3000) : 0;
  Array<float> mask(cells + spare, 1.0f);  // cells behind the grids look selected
  const int64_t density = draw(0, 10);
  const float values[] = {0.25f, 1.0f, 1e-42f, std::numeric_limits<float>::infinity()};
  const float rejected[] = {0.0f, -0.0f, -1.0f, std::nanf("")};
  for (int64_t i = 0; i < cells; ++i) mask[i] = draw(1, 10) <= density ? values[draw(0, 3)] : rejected[draw(0, 3)];

  std::vector<int64_t> cell, counts, offsets;
  std::vector<int32_t> row, column;
  int64_t place = 0;
  for (int64_t i = 0; i < objects; ++i) {
    offsets.push_back(cell.size());
    for (int64_t r = 0; r < shapes[2 * i]; ++r) {
      for (int64_t c = 0; c < shapes[2 * i + 1]; ++c, ++place) {
        if (!(mask[place] > 0)) continue;
        cell.push_back(place);
        row.push_back(static_cast<int32_t>(r));
        column.push_back(static_cast<int32_t>(c));
      }
    }
    counts.push_back(static_cast<int64_t>(cell.size()) - offsets.back());
  }
  offsets.push_back(cell.size());
  const int64_t capacity = std::max<int64_t>(0, static_cast<int64_t>(cell.size()) + draw(-5, 5) * draw(0, 200));
  cell.resize(capacity, -1);
  row.resize(capacity, -1);
  column.resize(capacity, -1);

  Array<int64_t> cell_out(capacity), counts_out(objects), offsets_out(objects + 1);
  Array<int32_t> row_out(capacity), column_out(capacity);
  if (on_cuda) {
    Array<int64_t> scratch(cuda::pack_objects_scratch(mask.length, objects));
    cuda::pack_objects(mask.data, mask.length, shapes.data, objects, capacity, cell_out.data, row_out.data,
                       column_out.data, counts_out.data, offsets_out.data, scratch.data, nullptr);
  } else {
    if (cpu::grid_cells(shapes.data, objects) != cells) std::exit(2);
    cpu::pack_objects(mask.data, shapes.data, objects, capacity, cell_out.data, row_out.data, column_out.data,
                      counts_out.data, offsets_out.data);
  }
  expect("cell", cell_out, cell);
  expect("row", row_out, row);
  expect("column", column_out, column);
  expect("counts", counts_out, counts);
  expect("offsets", offsets_out, offsets);
}

void fuzz_pack_views(bool on_cuda) {
  const int64_t views = draw(0, 12) == 0 ? draw(1000, 2100) : draw(0, 20);
  Array<int64_t> grids(3 * views);
  std::vector<int32_t> row, column, sequence, cu_seqlens{0}, longest{0};
  for (int64_t i = 0; i < views; ++i) {
    const int64_t merge = draw(1, 2);
    const int64_t down = views > 100 ? draw(0, 2) : draw_side(), across = views > 100 ? draw(0, 2) : draw_side();
    grids[3 * i] = down * merge;
    grids[3 * i + 1] = across * merge;
    grids[3 * i + 2] = merge;
    for (int64_t block = 0; block < down * across; ++block) {
      for (int64_t within = 0; within < merge * merge; ++within) {
        row.push_back(static_cast<int32_t>(block / across * merge + within / merge));
        column.push_back(static_cast<int32_t>(block % across * merge + within % merge));
        sequence.push_back(static_cast<int32_t>(i));
      }
    }
    longest[0] = std::max(longest[0], static_cast<int32_t>(down * across * merge * merge));
    cu_seqlens.push_back(static_cast<int32_t>(row.size()));
  }
  const int64_t patches = std::max<int64_t>(0, static_cast<int64_t>(row.size()) + draw(-5, 5) * draw(0, 300));
  row.resize(patches, 0);
  column.resize(patches, 0);
  sequence.resize(patches, static_cast<int32_t>(views));

  Array<int32_t> row_out(patches), column_out(patches), sequence_out(patches), cu_out(views + 1), longest_out(1);
  if (on_cuda) {
    Array<int64_t> scratch(cuda::pack_views_scratch(views));
    cuda::pack_views(grids.data, views, patches, row_out.data, column_out.data, sequence_out.data, cu_out.data,
                     longest_out.data, scratch.data, nullptr);
  } else {
    if (cpu::first_bad_view(grids.data, views) != -1) std::exit(2);
    cpu::pack_views(grids.data, views, patches, row_out.data, column_out.data, sequence_out.data, cu_out.data,
                    longest_out.data);
  }
  expect("row", row_out, row);
  expect("column", column_out, column);
  expect("sequence", sequence_out, sequence);
  expect("cu_seqlens", cu_out, cu_seqlens);
  expect("longest", longest_out, longest);
}

// Masks of one type, of which values are drawn; `marked` and `number` say what a value means.
template <typename Raw, typename Marked, typename Number>
void fuzz_masks_of(bool on_cuda, MaskType type, const std::vector<Raw>& values, Marked marked, Number number, Raw broken) {
  const int64_t count = draw(0, 4), height = draw(1, 40), width = draw(0, 5) == 0 ? draw(100, 400) : draw(1, 70);
  const int64_t column_stride = draw(1, 2), row_stride = column_stride * width + draw(0, 3);
  const int64_t strides[] = {row_stride * height + draw(0, 3), row_stride, column_stride};
  const int64_t span = count ? (count - 1) * strides[0] + (height - 1) * strides[1] + (width - 1) * strides[2] + 1 : 0;
  Array<Raw> masks(span, values.back());
  Array<float> cuts(count, 0.5f);
  const int64_t row_bytes = (width + 7) / 8;
  std::vector<uint8_t> bits(count * height * row_bytes, 0);
  std::vector<int64_t> extents(count * kExtents, 0);
  for (int64_t m = 0; m < count; ++m) {
    cuts[m] = draw(0, 1) ? 0.5f : 0.0f;
    const int64_t density = draw(0, 10);
    const bool some_broken = draw(0, 3) == 0;
    int64_t* extent = extents.data() + m * kExtents;
    int64_t highest = std::numeric_limits<int64_t>::min(), lowest = std::numeric_limits<int64_t>::max();
    for (int64_t r = 0; r < height; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        Raw value = draw(1, 10) <= density ? values[draw(1, values.size() - 1)] : values[0];
        if (some_broken && draw(0, 99) == 0) value = broken;
        masks[m * strides[0] + r * strides[1] + c * strides[2]] = value;
        if (some_broken && type >= MaskType::kFloat && std::memcmp(&value, &broken, sizeof(Raw)) == 0) extent[kUnfinite] = 1;
        if (!marked(value, cuts[m])) continue;
        bits[(m * height + r) * row_bytes + c / 8] |= 128 >> c % 8;
        extent[kArea] += 1;
        extent[kBelow] = std::max(extent[kBelow], height - r);
        extent[kBeyond] = std::max(extent[kBeyond], width - c);
        extent[kBottom] = std::max(extent[kBottom], r + 1);
        extent[kRight] = std::max(extent[kRight], c + 1);
        highest = std::max(highest, number(value));
        lowest = std::min(lowest, number(value));
      }
    }
    if (extent[kArea] > 0 && type < MaskType::kFloat) {
      extent[kHighest] = highest ^ std::numeric_limits<int64_t>::min();
      extent[kLowest] = lowest ^ std::numeric_limits<int64_t>::max();
    }
    for (int64_t b = 0; b < height * row_bytes; ++b) {
      for (int i = 0; i < kDigests; ++i) {
        extent[kDigest + i] = static_cast<int64_t>(extent[kDigest + i] + digest_part(bits[m * height * row_bytes + b], b, i));
      }
    }
  }
  Array<uint8_t> bits_out(bits.size());
  Array<int64_t> extents_out(extents.size());
  if (on_cuda) {
    cuda::pack_masks(masks.data, type, strides[0], strides[1], strides[2], count, height, width, cuts.data,
                     bits_out.data, extents_out.data, nullptr);
  } else {
    cpu::pack_masks(masks.data, type, strides, count, height, width, cuts.data, bits_out.data, extents_out.data);
  }
  expect("bits", bits_out, bits);
  expect("extents", extents_out, extents);
}

void fuzz_pack_masks(bool on_cuda) {
  const auto is_set = [](auto value, float) { return value != 0; };
  const auto whole = [](auto value) { return static_cast<int64_t>(value); };
  const auto none = [](auto) { return int64_t{0}; };
  constexpr int64_t least = std::numeric_limits<int64_t>::min(), most = std::numeric_limits<int64_t>::max();
  switch (draw(0, 5)) {
    case 0: return fuzz_masks_of<uint8_t>(on_cuda, MaskType::kByte, {0, 1, 7, 255}, is_set, whole, 9);
    case 1: return fuzz_masks_of<int32_t>(on_cuda, MaskType::kInt, {0, -1, 5, INT32_MIN, INT32_MAX}, is_set, whole, 9);
    case 2: return fuzz_masks_of<int64_t>(on_cuda, MaskType::kLong, {0, -1, 5, least, most}, is_set, whole, 9);
    case 3: {
      const auto above = [](float value, float cut) { return value > cut; };
      const float values[] = {-1.0f, 0.25f, 0.75f, 0.5f, 3e38f};
      const float broken = draw(0, 1) ? std::nanf("") : std::numeric_limits<float>::infinity();
      return fuzz_masks_of<float>(on_cuda, MaskType::kFloat, {values, values + 5}, above, none, broken);
    }
    case 4: {  // -1, 0.25, 0.75, 0.5, the smallest above 0; infinity
      const auto above = [](uint16_t value, float cut) { return value < 0x8000 && value > (cut > 0 ? 0x3800 : 0); };
      return fuzz_masks_of<uint16_t>(on_cuda, MaskType::kHalf, {0xbc00, 0x3400, 0x3a00, 0x3800, 1}, above, none, 0x7c00);
    }
    default: {
      const auto above = [](uint16_t value, float cut) { return value < 0x8000 && value > (cut > 0 ? 0x3f00 : 0); };
      return fuzz_masks_of<uint16_t>(on_cuda, MaskType::kBfloat16, {0xbf80, 0x3e80, 0x3f40, 0x3f00, 1}, above, none, 0x7f80);
    }
  }
}

void fuzz_mask_grids(bool on_cuda) {
  const int64_t masks = draw(0, 5);
  Array<int64_t> table(masks * kMaskColumns);
  int64_t cells = 0, bits = draw(0, 20);
  for (int64_t m = 0; m < masks; ++m) {
    int64_t* mask = table.data + m * kMaskColumns;
    const int64_t height = draw(0, 40), width = draw(0, 40), rounds = draw(0, 1);
    mask[kFirstCell] = cells;
    mask[kFirstBit] = bits;
    mask[kRows] = height;
    mask[kColumns] = width;
    mask[kRowBits] = width + draw(0, 9);
    mask[kTop] = draw(0, 9);
    mask[kLeft] = draw(0, 9);
    mask[kCropTop] = draw(0, 12);
    mask[kCropLeft] = draw(0, 12);
    mask[kCropBottom] = mask[kCropTop] + draw(0, 50);
    mask[kCropRight] = mask[kCropLeft] + draw(0, 50);
    mask[kGridRows] = draw(0, 12);
    mask[kGridColumns] = draw(0, 12);
    mask[kDownBits] = rounds * draw(14, 15);
    mask[kAcrossBits] = rounds * draw(14, 15);
    cells += mask[kGridRows] * mask[kGridColumns];
    bits += height * mask[kRowBits];
  }
  Array<uint8_t> given((bits + 7) / 8);
  for (int64_t i = 0; i < given.length; ++i) given[i] = static_cast<uint8_t>(draw(0, 255));
  std::vector<float> wanted;
  for (int64_t m = 0; m < masks; ++m) {
    const int64_t* mask = table.data + m * kMaskColumns;
    const auto pixel = [&](int64_t r, int64_t c) {
      r += mask[kCropTop] - mask[kTop];
      c += mask[kCropLeft] - mask[kLeft];
      if (r < 0 || c < 0 || r >= mask[kRows] || c >= mask[kColumns]) return 0;
      const int64_t bit = mask[kFirstBit] + r * mask[kRowBits] + c;
      return given[bit / 8] >> (7 - bit % 8) & 1;
    };
    // weights times 2 * size, of a place and the next one
    const auto taps = [](int64_t place, int64_t size, int64_t source, int64_t* low, int64_t* weights) {
      const int64_t at = std::max<int64_t>(0, (2 * place + 1) * source - size);
      *low = std::min(at / (2 * size), std::max<int64_t>(0, source - 1));
      weights[1] = *low == std::max<int64_t>(0, source - 1) ? 0 : at % (2 * size);
      weights[0] = 2 * size - weights[1];
    };
    const int64_t rows = mask[kGridRows], columns = mask[kGridColumns];
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        int64_t top, left, down[2], across[2];
        taps(r, rows, mask[kCropBottom] - mask[kCropTop], &top, down);
        taps(c, columns, mask[kCropRight] - mask[kCropLeft], &left, across);
        const auto pass = [](int64_t bits, int64_t size, const int64_t* weights, int64_t a, int64_t b) {
          const auto rounded = [&](int64_t weight) { return std::llround(std::ldexp(weight / (2.0 * size), bits)); };
          return (rounded(weights[0]) * a + rounded(weights[1]) * b + (int64_t{1} << (bits - 1))) >> bits;
        };
        int64_t sums[2], passed[2];
        for (int64_t i = 0; i < 2; ++i) {
          const int64_t a = pixel(top + i, left), b = pixel(top + i, left + 1);
          sums[i] = across[0] * a + across[1] * b;
          if (mask[kDownBits]) passed[i] = pass(mask[kAcrossBits], columns, across, a, b);
        }
        const double whole = static_cast<double>(down[0] * sums[0] + down[1] * sums[1]);
        wanted.push_back(mask[kDownBits] ? static_cast<float>(pass(mask[kDownBits], rows, down, passed[0], passed[1]))
                                         : static_cast<float>(whole / static_cast<double>(4 * rows * columns)));
      }
    }
  }
  Array<float> out(cells);
  if (on_cuda) {
    cuda::mask_grids(given.data, given.length, table.data, masks, cells, out.data, nullptr);
  } else {
    if (cpu::first_bad_mask(table.data, masks, given.length, cells) != -1) std::exit(2);
    cpu::mask_grids(given.data, given.length, table.data, masks, out.data);
  }
  for (int64_t i = 0; i < cells; ++i) {
    if (out[i] == wanted[i]) continue;
    std::fprintf(stderr, "cell %ld: expected %.9g, got %.9g\n", static_cast<long>(i), wanted[i], out[i]);
    std::exit(1);
  }
}

void fuzz_place_patches(bool on_cuda) {
  const int64_t marks = draw(0, 5), corners = draw(0, 1) ? 4 : 1, nowhere = draw(0, 1000);
  Array<int64_t> table(marks * kMarkColumns), offsets(marks + 1);
  std::vector<int32_t> rows, columns;
  std::vector<int64_t> owners;
  offsets[0] = 0;
  for (int64_t m = 0; m < marks; ++m) {
    int64_t* mark = table.data + m * kMarkColumns;
    for (int64_t i = 0; i < kMarkColumns; ++i) mark[i] = draw(1, i < kBox0 ? 9 : 900);
    if (corners == 1) std::copy_n(mark + kFeatureRows, 2, mark + kMarkGridRows);
    for (int64_t i = draw(0, 20); i > 0; --i) {
      rows.push_back(static_cast<int32_t>(draw(0, mark[kMarkGridRows] - 1)));
      columns.push_back(static_cast<int32_t>(draw(0, mark[kMarkGridColumns] - 1)));
      owners.push_back(m);
    }
    offsets[m + 1] = rows.size();
  }
  const int64_t slots = std::max<int64_t>(0, static_cast<int64_t>(rows.size()) + draw(-3, 5));
  Array<int32_t> row(slots, -1), column(slots, -1);
  std::vector<int64_t> index;
  std::vector<double> along;  // x and y in the image
  for (int64_t s = 0; s < slots; ++s) {
    const bool there = s < static_cast<int64_t>(rows.size());
    double place[2] = {0, 0};
    if (there) {
      row[s] = rows[s];
      column[s] = columns[s];
      const int64_t* mark = table.data + owners[s] * kMarkColumns;
      const auto part = [](double place, int64_t size, int64_t source, int64_t* low, int64_t* high) {
        const double at = std::max(0.0, (place + 0.5) * source / size - 0.5);
        *low = static_cast<int64_t>(at + 1e-6);
        *high = std::min(*low + 1, source - 1);
        return *high == *low ? static_cast<double>(*low) : at;
      };
      int64_t low_row, high_row, low_column, high_column;
      const double r = part(rows[s], mark[kMarkGridRows], mark[kFeatureRows], &low_row, &high_row);
      const double c = part(columns[s], mark[kMarkGridColumns], mark[kFeatureColumns], &low_column, &high_column);
      place[0] = (c / mark[kFeatureColumns] * (mark[kBox2] - mark[kBox0]) + mark[kBox0]) / std::max<double>(1, mark[kWidth] - 1);
      place[1] = (r / mark[kFeatureRows] * (mark[kBox3] - mark[kBox1]) + mark[kBox1]) / std::max<double>(1, mark[kHeight] - 1);
      for (const int64_t y : {low_row, high_row}) {
        for (const int64_t x : {low_column, high_column}) {
          if (corners == 4 || (y == low_row && x == low_column && static_cast<int64_t>(index.size()) == s)) {
            index.push_back(mark[kFirstPatch] + y * mark[kFeatureColumns] + x);
          }
        }
      }
    } else {
      index.insert(index.end(), corners, nowhere);
    }
    along.insert(along.end(), place, place + 2);
  }
  Array<int64_t> index_out(slots * corners);
  Array<float> weights(slots * corners, -1), positions(slots * 2, -1);
  if (on_cuda) {
    cuda::place_patches(row.data, column.data, offsets.data, table.data, marks, slots, corners, nowhere, index_out.data,
                        weights.data, positions.data, nullptr);
  } else {
    cpu::place_patches(row.data, column.data, offsets.data, table.data, marks, slots, corners, nowhere, index_out.data,
                       weights.data, positions.data);
  }
  for (int64_t s = 0; s < slots; ++s) {
    double sum = 0;
    for (int64_t i = 0; i < corners; ++i) {
      sum += weights[s * corners + i];
      // a place that floats take for the one before has all its weight on the next
      if (index_out[s * corners + i] != index[s * corners + i] && weights[s * corners + i] > 1e-5f) {
        std::fprintf(stderr, "patch %ld: expected %ld, got %ld\n", static_cast<long>(s),
                     static_cast<long>(index[s * corners + i]), static_cast<long>(index_out[s * corners + i]));
        std::exit(1);
      }
    }
    const bool there = s < static_cast<int64_t>(rows.size());
    const double off = std::max(std::abs(positions[2 * s] - along[2 * s]), std::abs(positions[2 * s + 1] - along[2 * s + 1]));
    if (std::abs(sum - there) > 1e-5 || off > 1e-4 * (1 + std::abs(along[2 * s]) + std::abs(along[2 * s + 1]))) {
      std::fprintf(stderr, "patch %ld: weights %g, off by %g\n", static_cast<long>(s), sum, off);
      std::exit(1);
    }
  }
}

void fuzz_tokens(bool on_cuda) {
  const int64_t element = draw(0, 1) ? 2 : 4, length = draw(0, 40);
  const int64_t width = draw(0, 3) == 0 ? 8 * draw(0, 200) : draw(0, 300);
  const int64_t row_bytes = width * element;
  // rows on multiples of 16 bytes whatever their width, or anywhere
  const bool aligned = draw(0, 2) == 0;
  const auto stride = [&] {
    if (aligned) return (row_bytes + 15) / 16 * 16 + 16 * draw(0, 1);
    return row_bytes + element * (draw(0, 2) == 0 ? draw(0, 20) : 0);
  };
  const auto first = [&] { return aligned ? 16 * draw(0, 2) : draw(0, 1) * element * draw(0, 8); };
  const int64_t embeds_stride = stride(), tokens_stride = stride();
  const int64_t first_embed = first(), first_token = first();
  std::vector<int64_t> rows(length);
  for (int64_t i = 0; i < length; ++i) rows[i] = i;
  std::shuffle(rows.begin(), rows.end(), generator);
  const int64_t count = draw(0, length);
  Array<int64_t> slots(count);
  // on a device, slots outside are left out as well
  const int64_t outside[] = {-1, -2, length, std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()};
  for (int64_t t = 0; t < count; ++t) slots[t] = draw(0, 4) == 0 ? outside[on_cuda ? draw(0, 4) : 0] : rows[t];

  const auto bytes = [&](int64_t skip, int64_t n, int64_t step) { return n ? skip + (n - 1) * step + row_bytes : skip; };
  Array<unsigned char> embeds(bytes(first_embed, length, embeds_stride));
  Array<unsigned char> tokens(bytes(first_token, count, tokens_stride)), back(tokens.length);
  for (int64_t i = 0; i < embeds.length; ++i) embeds[i] = static_cast<unsigned char>(draw(0, 255));
  for (int64_t i = 0; i < tokens.length; ++i) tokens[i] = static_cast<unsigned char>(draw(0, 255));
  std::vector<unsigned char> wanted(embeds.data, embeds.data + embeds.length), gathered(back.data, back.data + back.length);
  for (int64_t t = 0; t < count; ++t) {
    const bool placed = slots[t] >= 0 && slots[t] < length;
    for (int64_t b = 0; b < row_bytes; ++b) {
      const unsigned char value = tokens[first_token + t * tokens_stride + b];
      if (placed) wanted[first_embed + slots[t] * embeds_stride + b] = value;
      gathered[first_token + t * tokens_stride + b] = placed ? value : 0;
    }
  }

  auto* embeds_at = reinterpret_cast<char*>(embeds.data + first_embed);
  auto* tokens_at = reinterpret_cast<char*>(tokens.data + first_token);
  auto* back_at = reinterpret_cast<char*>(back.data + first_token);
  if (on_cuda) {
    cuda::scatter_tokens(embeds_at, embeds_stride, tokens_at, tokens_stride, slots.data, length, count, row_bytes,
                         static_cast<int>(element), nullptr);
    cuda::gather_tokens(embeds_at, embeds_stride, back_at, tokens_stride, slots.data, length, count, row_bytes,
                        static_cast<int>(element), nullptr);
  } else {
    if (cpu::first_bad_slot(slots.data, count, length) != -1) std::exit(2);
    cpu::scatter_tokens(embeds_at, embeds_stride, tokens_at, tokens_stride, slots.data, 0, count, row_bytes);
    cpu::gather_tokens(embeds_at, embeds_stride, back_at, tokens_stride, slots.data, 0, count, row_bytes);
  }
  expect("embeds", embeds, wanted);
  expect("gathered", back, gathered);
}

void look_back(cuda::LookBack blocks, int64_t own, int64_t* before) {
  const int64_t block = blocks.block();
  const int64_t sum = blocks.before(block, own);
  if (threadIdx.x == 0) *before = sum;
}

// One block whose predecessors are at any stage: on a device hundreds run at once, here a few do.
void fuzz_look_back() {
  const int64_t block = draw(0, 200);
  Array<unsigned long long> words(1 + block + 1, 0);
  words[0] = static_cast<unsigned long long>(block);  // the ticket
  const bool finished = draw(0, 1);
  int64_t sum = 0, before = kUnwritten;
  for (int64_t i = 0; i < block; ++i) {
    const int64_t own = draw(0, int64_t{1} << 52);
    sum += own;
    const bool prefix = i == 0 || (finished && draw(0, 9) == 0);
    words[1 + i] = prefix ? cuda::LookBack::kPrefix | sum : cuda::LookBack::kOwn | own;
  }
  const int64_t own = draw(0, 1000);
  cuda::launch(look_back, 1, cuda::kThreads, nullptr, cuda::LookBack{words.data, words.data + 1}, own, &before);
  if (before != sum || words[1 + block] != (cuda::LookBack::kPrefix | (sum + own))) {
    std::fprintf(stderr, "look-back of block %ld: expected %ld, got %ld\n", static_cast<long>(block),
                 static_cast<long>(sum), static_cast<long>(before));
    std::exit(1);
  }
}

void check_refusals() {
  const int64_t most = std::numeric_limits<int64_t>::max(), side = std::numeric_limits<int32_t>::max();
  const int64_t negative[] = {2, 3, -1, 1}, wide[] = {side + 1, 1}, wild[] = {most, most}, large[] = {side, side, side, side};
  const bool shapes = cpu::grid_cells(negative, 2) == -1 && cpu::grid_cells(wide, 1) == -1 &&
                      cpu::grid_cells(wild, 1) == -1 && cpu::grid_cells(large, 2) == int64_t{1} << 62;
  const int64_t odd[] = {2, 2, 2, 3, 4, 2}, merged[] = {1, 1, 3}, many[] = {1, side, 1, 1, 1, 1}, wild_view[] = {most, 2, 1};
  const bool views = cpu::first_bad_view(odd, 2) == 1 && cpu::first_bad_view(merged, 1) == 0 &&
                     cpu::first_bad_view(many, 2) == 1 && cpu::first_bad_view(wild_view, 1) == 0;
  const auto bad_mask = [](int which, int64_t value) {  // of 2 bytes and 6 cells
    int64_t mask[] = {0, 0, 4, 0, 0, 4, 4, 0, 0, 4, 4, 2, 3, 14, 15};
    mask[which] = value;
    return cpu::first_bad_mask(mask, 1, 2, 6);
  };
  const bool masks = bad_mask(kFirstCell, 0) == -1 && bad_mask(kFirstCell, 1) == 0 && bad_mask(kFirstBit, 1) == 0 &&
                     bad_mask(kFirstBit, most) == 0 && bad_mask(kRowBits, 3) == 0 && bad_mask(kRowBits, most) == 0 &&
                     bad_mask(kRows, -1) == 0 && bad_mask(kGridRows, 3) == 0 && bad_mask(kGridRows, 1) == 1 &&
                     bad_mask(kCropTop, 5) == 0 && bad_mask(kLeft, most) == 0 && bad_mask(kDownBits, 16) == 0 &&
                     bad_mask(kAcrossBits, 0) == 0;
  const int64_t slots[] = {0, -1, -2}, beyond[] = {0, 3};
  if (!shapes || !views || !masks || cpu::first_bad_slot(slots, 3, 3) != 2 || cpu::first_bad_slot(beyond, 2, 3) != 1) std::exit(3);
}

}  // namespace

int main(int, char** arguments) {
  check_refusals();
  for (const bool on_cuda : {false, true}) {
    const int cases = std::atoi(arguments[on_cuda ? 2 : 1]);
    for (int i = 0; i < cases; ++i) {
      fuzz_pack_objects(on_cuda);
      fuzz_pack_views(on_cuda);
      fuzz_pack_masks(on_cuda);
      fuzz_mask_grids(on_cuda);
      fuzz_place_patches(on_cuda);
      fuzz_tokens(on_cuda);
      if (on_cuda) fuzz_look_back();
    }
    std::printf("%s: %d cases of each operation\n", on_cuda ? "CUDA kernels on the CPU" : "CPU", cases);
  }
}
