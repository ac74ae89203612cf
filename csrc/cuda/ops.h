// The operations of the extension on a CUDA device, on plain device pointers: nothing of torch, no allocation, no wait.
// What each result means stands in pixelrefer_fast/ops/*.py. Launches go to `stream`; the caller has made its device the
// current one and reads the launches' errors from cudaGetLastError.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../mask_values.h"

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

void pack_masks(
    const void* masks,  // (count, height, width) of `type`
    MaskType type,
    int64_t mask_stride,  // in elements, as the others
    int64_t row_stride,
    int64_t column_stride,
    int64_t count,
    int64_t height,
    int64_t width,      // at most 2^31 - 1
    const float* cuts,  // (count,)
    uint8_t* bits,      // (count, height, (width + 7) / 8)
    int64_t* extents,   // (count, kExtents)
    cudaStream_t stream);

// Bits outside the buffer are 0.
void mask_grids(
    const uint8_t* bits,  // (bytes,)
    int64_t bytes,
    const int64_t* table,  // (masks, kMaskColumns)
    int64_t masks,
    int64_t count,
    float* cells,  // (count,)
    cudaStream_t stream);

void place_patches(
    const int32_t* row,      // (slots,)
    const int32_t* column,   // (slots,)
    const int64_t* offsets,  // (marks + 1,)
    const int64_t* table,    // (marks, kMarkColumns)
    int64_t marks,
    int64_t slots,
    int64_t corners,
    int64_t nowhere,
    int64_t* index,    // (slots, corners)
    float* weights,    // (slots, corners)
    float* positions,  // (slots, 2)
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
