// The operations of the extension on the CPU, on plain pointers: nothing of torch, nothing allocated, nothing checked
// but what cannot be checked before. What each result means stands in pixelrefer_fast/ops/*.py.
#pragma once

#include <cstdint>

#include "../mask_values.h"

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

void pack_masks(
    const void* masks,       // (count, height, width) of `type`
    MaskType type,
    const int64_t* strides,  // (3,), in elements
    int64_t count,
    int64_t height,
    int64_t width,
    const float* cuts,  // (count,)
    uint8_t* bits,      // (count, height, (width + 7) / 8)
    int64_t* extents    // (count, kExtents)
);

// First mask whose row of the table is none, or whose bits or cells are not there; `masks` if cells are left; -1 if all
// are good.
int64_t first_bad_mask(
    const int64_t* table,  // (masks, kMaskColumns)
    int64_t masks,
    int64_t bytes,
    int64_t cells);

// Needs good masks.
void mask_grids(
    const uint8_t* bits,   // (bytes,)
    int64_t bytes,
    const int64_t* table,  // (masks, kMaskColumns)
    int64_t masks,
    float* cells  // of all grids
);

// Needs offsets from 0 that never fall. Slots that no mark has get `nowhere`.
void place_patches(
    const int32_t* row,      // (slots,)
    const int32_t* column,   // (slots,)
    const int64_t* offsets,  // (marks + 1,)
    const int64_t* table,    // (marks, kMarkColumns)
    int64_t marks,
    int64_t slots,
    int64_t corners,
    int64_t nowhere,
    int64_t* index,   // (slots, corners)
    float* weights,   // (slots, corners)
    float* positions  // (slots, 2)
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
