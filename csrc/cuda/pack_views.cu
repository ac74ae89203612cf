// Bounds of the views by a scan over their sizes, then one thread to a patch finds its view and its place in it.
#include "ops.h"
#include "scan.cuh"

#include <algorithm>

namespace pixelrefer_fast::cuda {
namespace {

constexpr int kPatches = 4;  // of one thread
constexpr int kTile = kThreads * kPatches;
constexpr int64_t kMostBlocks = 1 << 16;

__global__ void __launch_bounds__(kThreads) view_bounds(
    const int64_t* __restrict__ grids,  // (views, 3)
    int64_t views,
    LookBack blocks,
    int64_t* __restrict__ bounds,      // (views + 1,)
    int32_t* __restrict__ cu_seqlens,  // (views + 1,)
    int32_t* __restrict__ longest      // (1,), zero at the start
) {
  const int64_t block = blocks.block();
  const int64_t base = block * kScanTile + threadIdx.x * kScanItems;
  int64_t sizes[kScanItems], sum = 0, total;
  int largest = 0;
#pragma unroll
  for (int i = 0; i < kScanItems; ++i) {
    sizes[i] = base + i < views ? grid_size(grids + 3 * (base + i), INT32_MAX) : 0;
    sum += sizes[i];
    largest = max(largest, static_cast<int>(sizes[i]));
  }
  largest = __reduce_max_sync(kAllLanes, largest);
  if (threadIdx.x % kWarp == 0 && largest > 0) atomicMax(longest, largest);
  int64_t place = block_exclusive_sum(sum, total);
  place += blocks.before(block, total);
#pragma unroll
  for (int i = 0; i < kScanItems; ++i) {
    if (base + i <= views) {
      bounds[base + i] = place;
      cu_seqlens[base + i] = static_cast<int32_t>(place);
    }
    place += sizes[i];
  }
}

__global__ void __launch_bounds__(kThreads) view_places(
    const int64_t* __restrict__ grids,   // (views, 3)
    const int64_t* __restrict__ bounds,  // (views + 1,)
    int64_t views,
    int64_t patches,
    int32_t* __restrict__ row,      // (patches,)
    int32_t* __restrict__ column,   // (patches,)
    int32_t* __restrict__ sequence  // (patches,)
) {
  __shared__ int64_t range[2];  // first and last view of the tile
  for (int64_t tile = blockIdx.x; tile * kTile < patches; tile += gridDim.x) {
    const int64_t start = tile * kTile;
    if (threadIdx.x == 0) range[0] = upper_bound(bounds, 1, views + 1, start) - 1;
    if (threadIdx.x == kWarp) range[1] = upper_bound(bounds, 1, views + 1, min(start + kTile, patches) - 1) - 1;
    __syncthreads();
    const int64_t first = range[0], last = range[1];
#pragma unroll
    for (int i = 0; i < kPatches; ++i) {
      const int64_t patch = start + i * kThreads + threadIdx.x;
      if (patch >= patches) break;
      const int64_t view = upper_bound(bounds, first + 1, last + 1, patch) - 1;
      uint32_t r = 0, c = 0;
      if (view < views) {
        const uint32_t columns = static_cast<uint32_t>(grids[3 * view + 1]);
        const uint32_t merge = static_cast<uint32_t>(grids[3 * view + 2]);
        const uint32_t inside = static_cast<uint32_t>(patch - bounds[view]);
        const uint32_t block = inside / (merge * merge), within = inside % (merge * merge);
        const uint32_t across = columns / merge;
        r = block / across * merge + within / merge;
        c = block % across * merge + within % merge;
      }
      row[patch] = static_cast<int32_t>(r);
      column[patch] = static_cast<int32_t>(c);
      sequence[patch] = static_cast<int32_t>(view);
    }
    __syncthreads();  // range is written again
  }
}

int64_t scan_blocks(int64_t views) { return views / kScanTile + 1; }  // one more item: the bounds end with the total

}  // namespace

// ticket, words of the look-back, bounds
int64_t pack_views_scratch(int64_t views) { return 1 + scan_blocks(views) + views + 1; }

void pack_views(const int64_t* grids, int64_t views, int64_t patches, int32_t* row, int32_t* column,
                int32_t* sequence, int32_t* cu_seqlens, int32_t* longest, int64_t* scratch, cudaStream_t stream) {
  auto* words = reinterpret_cast<unsigned long long*>(scratch);
  const int64_t scans = scan_blocks(views);
  int64_t* bounds = scratch + 1 + scans;
  cudaMemsetAsync(words, 0, (1 + scans) * sizeof(*words), stream);
  cudaMemsetAsync(longest, 0, sizeof(*longest), stream);
  launch(view_bounds, scans, kThreads, stream, grids, views, LookBack{words, words + 1}, bounds, cu_seqlens, longest);
  if (patches == 0) return;
  const int64_t tiles = std::min(kMostBlocks, (patches + kTile - 1) / kTile);
  launch(view_places, tiles, kThreads, stream, grids, bounds, views, patches, row, column, sequence);
}

}  // namespace pixelrefer_fast::cuda
