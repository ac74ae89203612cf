// pixelrefer_fast._C: the operations on tensors of the host.
#include <torch/csrc/stable/ops.h>

#include "checks.h"
#include "cpu/ops.h"
#include "module.h"

namespace pixelrefer_fast {
namespace {

constexpr int64_t kGrainBytes = 1 << 18;  // what one thread copies at least

void pack_objects_out(const Tensor& mask_grids, const Tensor& grid_shapes, const Tensor& cell, const Tensor& row,
                      const Tensor& column, const Tensor& counts, const Tensor& offsets, const Tensor&) {
  const Arguments check("pack_objects_out", mask_grids);
  const auto* mask = check.data<const float>("mask_grids", mask_grids, {kAny}, ScalarType::Float);
  const auto* shapes = check.data<const int64_t>("grid_shapes", grid_shapes, {kAny, 2}, ScalarType::Long);
  const int64_t objects = grid_shapes.size(0), cells = cpu::grid_cells(shapes, objects);
  if (cells < 0) fail(check.op(), ": expected sides of grid_shapes from 0 to 2147483647, got one outside");
  if (cells > mask_grids.numel()) {
    fail(check.op(), ": expected ", cells, " cells or more for these shapes, got ", mask_grids.numel());
  }
  auto* cell_data = check.data<int64_t>("cell", cell, {kAny}, ScalarType::Long);
  const int64_t capacity = cell.size(0);
  cpu::pack_objects(mask, shapes, objects, capacity, cell_data,
                    check.data<int32_t>("row", row, {capacity}, ScalarType::Int),
                    check.data<int32_t>("column", column, {capacity}, ScalarType::Int),
                    check.data<int64_t>("counts", counts, {objects}, ScalarType::Long),
                    check.data<int64_t>("offsets", offsets, {objects + 1}, ScalarType::Long));
}

void pack_views_out(const Tensor& grids, const Tensor& row, const Tensor& column, const Tensor& sequence,
                    const Tensor& cu_seqlens, const Tensor& longest, const Tensor&) {
  const Arguments check("pack_views_out", grids);
  const auto* grid = check.data<const int64_t>("grids", grids, {kAny, 3}, ScalarType::Long);
  const int64_t views = grids.size(0), bad = cpu::first_bad_view(grid, views);
  if (bad >= 0) {
    fail(check.op(), ": expected grids of (rows, columns, merge) with merge 1, or 2 and even sides, and at most ",
         "2147483647 patches, got (", grid[3 * bad], ", ", grid[3 * bad + 1], ", ", grid[3 * bad + 2], ") for view ", bad);
  }
  auto* row_data = check.data<int32_t>("row", row, {kAny}, ScalarType::Int);
  const int64_t patches = row.size(0);
  cpu::pack_views(grid, views, patches, row_data, check.data<int32_t>("column", column, {patches}, ScalarType::Int),
                  check.data<int32_t>("sequence", sequence, {patches}, ScalarType::Int),
                  check.data<int32_t>("cu_seqlens", cu_seqlens, {views + 1}, ScalarType::Int),
                  check.data<int32_t>("longest", longest, {1}, ScalarType::Int));
}

void pack_masks_out(const Tensor& masks, const Tensor& cuts, const Tensor& bits, const Tensor& extents) {
  const MaskStack stack(Arguments("pack_masks_out", masks), masks, cuts, bits, extents);
  cpu::pack_masks(stack.data, stack.type, stack.strides, stack.count, stack.height, stack.width, stack.cuts, stack.bits,
                  stack.extents);
}

void mask_grids_out(const Tensor& bits, const Tensor& table, const Tensor& cells) {
  const Arguments check("mask_grids_out", bits);
  const auto* bit_data = check.data<const uint8_t>("bits", bits, {kAny}, ScalarType::Byte);
  const auto* rows = check.data<const int64_t>("table", table, {kAny, kMaskColumns}, ScalarType::Long);
  auto* cell_data = check.data<float>("cells", cells, {kAny}, ScalarType::Float);
  const int64_t bytes = bits.size(0), masks = table.size(0), count = cells.size(0);
  const int64_t bad = cpu::first_bad_mask(rows, masks, bytes, count);
  if (bad == masks) fail(check.op(), ": expected as many cells as the grids have, got ", count);
  if (bad >= 0) fail(check.op(), ": expected masks within the bits and the cells, got mask ", bad, " outside");
  cpu::mask_grids(bit_data, bytes, rows, masks, cell_data);
}

void place_patches_out(const Tensor& row, const Tensor& column, const Tensor& offsets, const Tensor& table,
                       int64_t nowhere, const Tensor& index, const Tensor& weights, const Tensor& positions) {
  const Arguments check("place_patches_out", row);
  const PlacedPatches at(check, row, column, offsets, table, index, weights, positions);
  for (int64_t m = 0; m <= at.marks; ++m) {
    if (at.offsets[m] < (m == 0 ? 0 : at.offsets[m - 1]) || (m == 0 && at.offsets[0] != 0)) {
      fail(check.op(), ": expected offsets from 0 that never fall, got ", at.offsets[m], " for mark ", m);
    }
  }
  cpu::place_patches(at.row, at.column, at.offsets, at.table, at.marks, at.slots, at.corners, nowhere, at.index,
                     at.weights, at.positions);
}

TokenRows checked_rows(const char* op, const Tensor& embeds, const Tensor& tokens, const Tensor& slots) {
  const TokenRows rows(Arguments(op, embeds), embeds, tokens, slots);
  const int64_t bad = cpu::first_bad_slot(rows.slots, rows.tokens, rows.length);
  if (bad >= 0) fail(op, ": expected slots from -1 to ", rows.length - 1, ", got ", rows.slots[bad], " for token ", bad);
  return rows;
}

int64_t grain(const TokenRows& rows) { return 1 + kGrainBytes / (1 + rows.row_bytes); }

void scatter_tokens_(const Tensor& embeds, const Tensor& tokens, const Tensor& slots) {
  const TokenRows rows = checked_rows("scatter_tokens_", embeds, tokens, slots);
  auto* to = static_cast<char*>(embeds.mutable_data_ptr());
  const auto* from = static_cast<const char*>(tokens.const_data_ptr());
  torch::stable::parallel_for(0, rows.tokens, grain(rows), [&](int64_t begin, int64_t end) {
    cpu::scatter_tokens(to, rows.embeds_stride, from, rows.tokens_stride, rows.slots, begin, end, rows.row_bytes);
  });
}

void gather_tokens_out(const Tensor& embeds, const Tensor& slots, const Tensor& tokens) {
  const TokenRows rows = checked_rows("gather_tokens_out", embeds, tokens, slots);
  const auto* from = static_cast<const char*>(embeds.const_data_ptr());
  auto* to = static_cast<char*>(tokens.mutable_data_ptr());
  torch::stable::parallel_for(0, rows.tokens, grain(rows), [&](int64_t begin, int64_t end) {
    cpu::gather_tokens(from, rows.embeds_stride, to, rows.tokens_stride, rows.slots, begin, end, rows.row_bytes);
  });
}

// so many rows for each thread that starting it is worth it
int64_t dense_grain(int64_t width) { return 1 + kGrainBytes / (1 + static_cast<int64_t>(sizeof(float)) * width); }

void bias_gelu_(const Tensor& x, const Tensor& bias) {
  const Arguments check("bias_gelu_", x);
  auto* own = check.data<float>("x", x, {kAny, kAny}, ScalarType::Float);
  const int64_t width = x.size(1);
  const auto* added = check.data<const float>("bias", bias, {width}, ScalarType::Float);
  torch::stable::parallel_for(0, x.size(0), dense_grain(width), [&](int64_t begin, int64_t end) {
    cpu::bias_gelu(own, added, width, begin, end);
  });
}

void add_norm_out(const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias, double eps,
                  const Tensor& summed, const Tensor& normed) {
  const Arguments check("add_norm_out", x);
  const auto* own = check.data<const float>("x", x, {kAny, kAny}, ScalarType::Float);
  const int64_t rows = x.size(0), width = x.size(1);
  const auto* added = check.data<const float>("delta", delta, {rows, width}, ScalarType::Float);
  const auto* scale = check.data<const float>("weight", weight, {width}, ScalarType::Float);
  const auto* shift = check.data<const float>("bias", bias, {width}, ScalarType::Float);
  auto* sums = check.data<float>("summed", summed, {rows, width}, ScalarType::Float);
  auto* norms = check.data<float>("normed", normed, {rows, width}, ScalarType::Float);
  torch::stable::parallel_for(0, rows, dense_grain(width), [&](int64_t begin, int64_t end) {
    cpu::add_norm(own, added, scale, shift, static_cast<float>(eps), sums, norms, width, begin, end);
  });
}

void rope2d_(const Tensor& qkv, const Tensor& bias, const Tensor& rows, const Tensor& columns, const Tensor& cos,
             const Tensor& sin) {
  const Arguments check("rope2d_", qkv);
  check.shape("qkv", qkv, {kAny, 3, kAny, kAny}).dtype("qkv", qkv, ScalarType::Float);
  const int64_t patches = qkv.size(0), heads = qkv.size(2), head_dim = qkv.size(3), width = heads * head_dim;
  if (head_dim % 4 != 0 || head_dim > cpu::kMostHeadDim) {
    fail(check.op(), ": expected heads of a multiple of 4, up to ", cpu::kMostHeadDim, ", got ", head_dim);
  }
  const auto strides = qkv.strides();
  if (patches > 0 && width > 0 && (strides[1] != width || strides[2] != head_dim || strides[3] != 1)) {
    fail(check.op(), ": expected qkv with contiguous rows, got strides ", shape_text(strides));
  }
  const auto* added = check.data<const float>("bias", bias, {3, heads, head_dim}, ScalarType::Float);
  const auto* row = check.data<const int32_t>("rows", rows, {patches}, ScalarType::Int);
  const auto* column = check.data<const int32_t>("columns", columns, {patches}, ScalarType::Int);
  const auto* cosine = check.data<const float>("cos", cos, {kAny, head_dim / 4}, ScalarType::Float);
  const auto* sine = check.data<const float>("sin", sin, {cos.size(0), head_dim / 4}, ScalarType::Float);
  for (const auto* places : {row, column}) {
    const int64_t bad = cpu::first_bad_place(places, patches, cos.size(0));
    if (bad >= 0) fail(check.op(), ": expected places from 0 to ", cos.size(0) - 1, ", got ", places[bad]);
  }
  auto* own = static_cast<float*>(qkv.mutable_data_ptr());
  torch::stable::parallel_for(0, patches, dense_grain(3 * width), [&](int64_t begin, int64_t end) {
    cpu::rope2d(own, strides[0], added, row, column, cosine, sine, heads, head_dim, begin, end);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pixelrefer_fast, CPU, library) {
  library.impl("pack_masks_out", TORCH_BOX(&pack_masks_out));
  library.impl("mask_grids_out", TORCH_BOX(&mask_grids_out));
  library.impl("place_patches_out", TORCH_BOX(&place_patches_out));
  library.impl("pack_objects_out", TORCH_BOX(&pack_objects_out));
  library.impl("pack_views_out", TORCH_BOX(&pack_views_out));
  library.impl("scatter_tokens_", TORCH_BOX(&scatter_tokens_));
  library.impl("gather_tokens_out", TORCH_BOX(&gather_tokens_out));
  library.impl("bias_gelu_", TORCH_BOX(&bias_gelu_));
  library.impl("add_norm_out", TORCH_BOX(&add_norm_out));
  library.impl("rope2d_", TORCH_BOX(&rope2d_));
}

}  // namespace pixelrefer_fast

PIXELREFER_FAST_MODULE(_C)
