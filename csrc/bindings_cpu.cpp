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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pixelrefer_fast, CPU, library) {
  library.impl("pack_masks_out", TORCH_BOX(&pack_masks_out));
  library.impl("mask_grids_out", TORCH_BOX(&mask_grids_out));
  library.impl("place_patches_out", TORCH_BOX(&place_patches_out));
  library.impl("pack_objects_out", TORCH_BOX(&pack_objects_out));
  library.impl("pack_views_out", TORCH_BOX(&pack_views_out));
  library.impl("scatter_tokens_", TORCH_BOX(&scatter_tokens_));
  library.impl("gather_tokens_out", TORCH_BOX(&gather_tokens_out));
}

}  // namespace pixelrefer_fast

PIXELREFER_FAST_MODULE(_C)
