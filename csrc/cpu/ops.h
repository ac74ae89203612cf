// The operations of the extension on the CPU, on plain pointers: nothing of torch, nothing allocated, nothing checked
// but what cannot be checked before. What each result means stands in pixelrefer_fast/ops/*.py.
#pragma once

#include <cstdint>

namespace pixelrefer_fast::cpu {

// Cells of all grids; -1 if a side is not from 0 to 2^31 - 1. Stops at 2^62 rather than overflow.
int64_t grid_cells(
    const int64_t* grid_shapes,  // (objects, 2)
    int64_t objects);

// Needs mask_grids of grid_cells(...) cells or more.
void pack_objects(
    const float* mask_grids,     // (cells,)
    const int64_t* grid_shapes,  // (objects, 2)
    int64_t objects,
    int64_t capacity,
    int64_t* cell,     // (capacity,)
    int32_t* row,      // (capacity,)
    int32_t* column,   // (capacity,)
    int64_t* counts,   // (objects,)
    int64_t* offsets   // (objects + 1,)
);

// First view whose grid is none, or of which the patches no longer fit int32; -1 if all are good.
int64_t first_bad_view(
    const int64_t* grids,  // (views, 3)
    int64_t views);

// Needs good views.
void pack_views(
    const int64_t* grids,  // (views, 3)
    int64_t views,
    int64_t patches,
    int32_t* row,         // (patches,)
    int32_t* column,      // (patches,)
    int32_t* sequence,    // (patches,)
    int32_t* cu_seqlens,  // (views + 1,)
    int32_t* longest      // (1,)
);

// First token whose slot is not from -1 to length - 1; -1 if all are good.
int64_t first_bad_slot(
    const int64_t* slots,  // (tokens,)
    int64_t tokens,
    int64_t length);

// Rows `begin` to `end` of the tokens; needs good slots. Strides in bytes.
void scatter_tokens(
    char* embeds,          // (length, row_bytes)
    int64_t embeds_stride,
    const char* tokens,    // (tokens, row_bytes)
    int64_t tokens_stride,
    const int64_t* slots,  // (tokens,)
    int64_t begin,
    int64_t end,
    int64_t row_bytes);

void gather_tokens(
    const char* embeds,    // (length, row_bytes)
    int64_t embeds_stride,
    char* tokens,          // (tokens, row_bytes)
    int64_t tokens_stride,
    const int64_t* slots,  // (tokens,)
    int64_t begin,
    int64_t end,
    int64_t row_bytes);

}  // namespace pixelrefer_fast::cpu
