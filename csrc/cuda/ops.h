// The operations of the extension on a CUDA device, on plain device pointers: nothing of torch, no allocation, no wait.
// What each result means stands in pixelrefer_fast/ops/*.py. Launches go to `stream`; the caller has made its device the
// current one and reads the launches' errors from cudaGetLastError.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace pixelrefer_fast::cuda {

// 64-bit words of scratch that a call needs; their content does not matter.
int64_t pack_objects_scratch(int64_t cells, int64_t objects);
int64_t pack_views_scratch(int64_t views);

void pack_objects(
    const float* mask_grids,     // (cells,)
    int64_t cells,
    const int64_t* grid_shapes,  // (objects, 2)
    int64_t objects,
    int64_t capacity,
    int64_t* cell,     // (capacity,)
    int32_t* row,      // (capacity,)
    int32_t* column,   // (capacity,)
    int64_t* counts,   // (objects,)
    int64_t* offsets,  // (objects + 1,)
    int64_t* scratch,  // (pack_objects_scratch(...),)
    cudaStream_t stream);

void pack_views(
    const int64_t* grids,  // (views, 3)
    int64_t views,
    int64_t patches,
    int32_t* row,         // (patches,)
    int32_t* column,      // (patches,)
    int32_t* sequence,    // (patches,)
    int32_t* cu_seqlens,  // (views + 1,)
    int32_t* longest,     // (1,)
    int64_t* scratch,     // (pack_views_scratch(...),)
    cudaStream_t stream);

// Strides and row_bytes in bytes; `element` is that of the dtype, which pointers and strides are multiples of.
void scatter_tokens(
    char* embeds,          // (length, row_bytes)
    int64_t embeds_stride,
    const char* tokens,    // (count, row_bytes)
    int64_t tokens_stride,
    const int64_t* slots,  // (count,); outside 0 to length - 1 is left out
    int64_t length,
    int64_t count,
    int64_t row_bytes,
    int element,
    cudaStream_t stream);

void gather_tokens(
    const char* embeds,    // (length, row_bytes)
    int64_t embeds_stride,
    char* tokens,          // (count, row_bytes)
    int64_t tokens_stride,
    const int64_t* slots,  // (count,); outside 0 to length - 1 gives zeros
    int64_t length,
    int64_t count,
    int64_t row_bytes,
    int element,
    cudaStream_t stream);

}  // namespace pixelrefer_fast::cuda
