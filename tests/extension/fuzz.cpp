// Random ragged inputs through the CPU implementation and through the CUDA kernels on the CPU, against plain loops.
// Built with AddressSanitizer and UndefinedBehaviorSanitizer; every array is exactly as long as it may be.
//   fuzz CPU_CASES CUDA_CASES
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "cpu/ops.h"
#include "cuda/ops.h"
#include "cuda/scan.cuh"

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
  const int64_t slots[] = {0, -1, -2}, beyond[] = {0, 3};
  if (!shapes || !views || cpu::first_bad_slot(slots, 3, 3) != 2 || cpu::first_bad_slot(beyond, 2, 3) != 1) std::exit(3);
}

}  // namespace

int main(int, char** arguments) {
  check_refusals();
  for (const bool on_cuda : {false, true}) {
    const int cases = std::atoi(arguments[on_cuda ? 2 : 1]);
    for (int i = 0; i < cases; ++i) {
      fuzz_pack_objects(on_cuda);
      fuzz_pack_views(on_cuda);
      fuzz_tokens(on_cuda);
      if (on_cuda) fuzz_look_back();
    }
    std::printf("%s: %d cases of each operation\n", on_cuda ? "CUDA kernels on the CPU" : "CPU", cases);
  }
}
