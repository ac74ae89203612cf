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
  library.impl("pack_objects_out", TORCH_BOX(&pack_objects_out));
  library.impl("pack_views_out", TORCH_BOX(&pack_views_out));
  library.impl("scatter_tokens_", TORCH_BOX(&scatter_tokens_));
  library.impl("gather_tokens_out", TORCH_BOX(&gather_tokens_out));
}

}  // namespace pixelrefer_fast

PIXELREFER_FAST_MODULE(_C_cuda)
