// pixelrefer_fast._C_cuda: the operations on tensors of a CUDA device.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "checks.h"
#include "cuda/ops.h"
#include "module.h"

namespace pixelrefer_fast {
namespace {

// The tensor's device made current, and the stream that is current on it.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

int64_t* scratch_data(const Arguments& check, const Tensor& scratch, int64_t words) {
  auto* data = check.data<int64_t>("scratch", scratch, {kAny}, ScalarType::Long);
  if (scratch.size(0) < words) {
    fail(check.op(), ": expected scratch of shape (", words, ",) or more, got (", scratch.size(0), ",)");
  }
  return data;
}

void pack_objects_out(const Tensor& mask_grids, const Tensor& grid_shapes, const Tensor& cell, const Tensor& row,
                      const Tensor& column, const Tensor& counts, const Tensor& offsets, const Tensor& scratch) {
  const Arguments check("pack_objects_out", mask_grids);
  const auto* mask = check.data<const float>("mask_grids", mask_grids, {kAny}, ScalarType::Float);
  const auto* shapes = check.data<const int64_t>("grid_shapes", grid_shapes, {kAny, 2}, ScalarType::Long);
  const int64_t cells = mask_grids.size(0), objects = grid_shapes.size(0);
  auto* cell_data = check.data<int64_t>("cell", cell, {kAny}, ScalarType::Long);
  const int64_t capacity = cell.size(0);
  auto* row_data = check.data<int32_t>("row", row, {capacity}, ScalarType::Int);
  auto* column_data = check.data<int32_t>("column", column, {capacity}, ScalarType::Int);
  auto* counts_data = check.data<int64_t>("counts", counts, {objects}, ScalarType::Long);
  auto* offsets_data = check.data<int64_t>("offsets", offsets, {objects + 1}, ScalarType::Long);
  auto* words = scratch_data(check, scratch, cuda::pack_objects_scratch(cells, objects));
  const Launch launch(mask_grids);
  cuda::pack_objects(mask, cells, shapes, objects, capacity, cell_data, row_data, column_data, counts_data,
                     offsets_data, words, launch.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void pack_views_out(const Tensor& grids, const Tensor& row, const Tensor& column, const Tensor& sequence,
                    const Tensor& cu_seqlens, const Tensor& longest, const Tensor& scratch) {
  const Arguments check("pack_views_out", grids);
  const auto* grid = check.data<const int64_t>("grids", grids, {kAny, 3}, ScalarType::Long);
  const int64_t views = grids.size(0);
  auto* row_data = check.data<int32_t>("row", row, {kAny}, ScalarType::Int);
  const int64_t patches = row.size(0);
  auto* column_data = check.data<int32_t>("column", column, {patches}, ScalarType::Int);
  auto* sequence_data = check.data<int32_t>("sequence", sequence, {patches}, ScalarType::Int);
  auto* cu_seqlens_data = check.data<int32_t>("cu_seqlens", cu_seqlens, {views + 1}, ScalarType::Int);
  auto* longest_data = check.data<int32_t>("longest", longest, {1}, ScalarType::Int);
  auto* words = scratch_data(check, scratch, cuda::pack_views_scratch(views));
  const Launch launch(grids);
  cuda::pack_views(grid, views, patches, row_data, column_data, sequence_data, cu_seqlens_data, longest_data, words,
                   launch.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void pack_masks_out(const Tensor& masks, const Tensor& cuts, const Tensor& bits, const Tensor& extents) {
  const MaskStack stack(Arguments("pack_masks_out", masks), masks, cuts, bits, extents);
  const Launch launch(masks);
  cuda::pack_masks(stack.data, stack.type, stack.strides[0], stack.strides[1], stack.strides[2], stack.count,
                   stack.height, stack.width, stack.cuts, stack.bits, stack.extents, launch.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void mask_grids_out(const Tensor& bits, const Tensor& table, const Tensor& cells) {
  const Arguments check("mask_grids_out", bits);
  const auto* bit_data = check.data<const uint8_t>("bits", bits, {kAny}, ScalarType::Byte);
  const auto* rows = check.data<const int64_t>("table", table, {kAny, kMaskColumns}, ScalarType::Long);
  auto* cell_data = check.data<float>("cells", cells, {kAny}, ScalarType::Float);
  const Launch launch(bits);
  cuda::mask_grids(bit_data, bits.size(0), rows, table.size(0), cells.size(0), cell_data, launch.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void place_patches_out(const Tensor& row, const Tensor& column, const Tensor& offsets, const Tensor& table,
                       int64_t nowhere, const Tensor& index, const Tensor& weights, const Tensor& positions) {
  const PlacedPatches at(Arguments("place_patches_out", row), row, column, offsets, table, index, weights, positions);
  const Launch launch(row);
  cuda::place_patches(at.row, at.column, at.offsets, at.table, at.marks, at.slots, at.corners, nowhere, at.index,
                      at.weights, at.positions, launch.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void scatter_tokens_(const Tensor& embeds, const Tensor& tokens, const Tensor& slots) {
  const TokenRows rows(Arguments("scatter_tokens_", embeds), embeds, tokens, slots);
  const Launch launch(embeds);
  cuda::scatter_tokens(static_cast<char*>(embeds.mutable_data_ptr()), rows.embeds_stride,
                       static_cast<const char*>(tokens.const_data_ptr()), rows.tokens_stride, rows.slots, rows.length,
                       rows.tokens, rows.row_bytes, static_cast<int>(embeds.element_size()), launch.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void gather_tokens_out(const Tensor& embeds, const Tensor& slots, const Tensor& tokens) {
  const TokenRows rows(Arguments("gather_tokens_out", embeds), embeds, tokens, slots);
  const Launch launch(embeds);
  cuda::gather_tokens(static_cast<const char*>(embeds.const_data_ptr()), rows.embeds_stride,
                      static_cast<char*>(tokens.mutable_data_ptr()), rows.tokens_stride, rows.slots, rows.length,
                      rows.tokens, rows.row_bytes, static_cast<int>(embeds.element_size()), launch.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pixelrefer_fast, CUDA, library) {
  library.impl("pack_masks_out", TORCH_BOX(&pack_masks_out));
  library.impl("mask_grids_out", TORCH_BOX(&mask_grids_out));
  library.impl("place_patches_out", TORCH_BOX(&place_patches_out));
  library.impl("pack_objects_out", TORCH_BOX(&pack_objects_out));
  library.impl("pack_views_out", TORCH_BOX(&pack_views_out));
  library.impl("scatter_tokens_", TORCH_BOX(&scatter_tokens_));
  library.impl("gather_tokens_out", TORCH_BOX(&gather_tokens_out));
}

}  // namespace pixelrefer_fast

PIXELREFER_FAST_MODULE(_C_cuda)
