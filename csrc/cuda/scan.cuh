// What the packing kernels share: warp and block sums, the scan over blocks in one pass, and ragged look-ups.
#pragma once

#ifdef __CUDACC__
#include "device.cuh"
#else
#include <device_on_cpu.h>  // of tests/extension/: the kernels on the CPU
#endif

namespace pixelrefer_fast::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// Objects or views that one block of a scan sums.
constexpr int kScanItems = 4;
constexpr int kScanTile = kThreads * kScanItems;

__device__ __forceinline__ int64_t warp_inclusive_sum(int64_t value, int lane) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int64_t below = __shfl_up_sync(kAllLanes, value, step);
    if (lane >= step) value += below;
  }
  return value;
}

// Sum of the threads before this one; `total` is that of the block. All threads call it.
__device__ __forceinline__ int64_t block_exclusive_sum(int64_t value, int64_t& total) {
  __shared__ int64_t warp_totals[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t inclusive = warp_inclusive_sum(value, lane);
  if (lane == kWarp - 1) warp_totals[warp] = inclusive;
  __syncthreads();
  int64_t before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) before = total;
    total += warp_totals[w];
  }
  __syncthreads();  // the next call writes warp_totals again
  return before + inclusive - value;
}

// Decoupled look-back (Merrill and Garland 2016): each block publishes first its own sum, then that of all blocks up to
// it, and takes what came before it from its predecessors. A word holds the state in its upper two bits and the sum in
// the rest, so it is read and written whole. Blocks take their numbers from a ticket: the ones before them have started.
struct LookBack {
  static constexpr unsigned long long kOwn = 1ull << 62;
  static constexpr unsigned long long kPrefix = 2ull << 62;
  static constexpr unsigned long long kValue = kOwn - 1;

  unsigned long long* ticket;
  unsigned long long* words;  // one for each block, zero at the start, like the ticket

  // The number of this block. All threads call it.
  __device__ __forceinline__ int64_t block() const {
    __shared__ unsigned long long number;
    if (threadIdx.x == 0) number = atomicAdd(ticket, 1ull);
    __syncthreads();
    return static_cast<int64_t>(number);
  }

  // Sum of the blocks before this one. All threads call it; sums are from 0 to 2^62 - 1.
  __device__ __forceinline__ int64_t before(int64_t block, int64_t own) const {
    __shared__ int64_t shared;
    if (threadIdx.x < kWarp) {
      const int lane = threadIdx.x;
      int64_t sum = 0;
      if (block > 0) {
        if (lane == 0) store_relaxed(words + block, kOwn | own);
        // the nearest 32 predecessors at a time, the nearest in lane 0
        for (int64_t last = block - 1;; last -= kWarp) {
          const int64_t mine = last - lane;
          unsigned long long word = kPrefix;  // before the first block: a sum of nothing
          if (mine >= 0) {
            do {
              word = load_relaxed(words + mine);
            } while (word < kOwn);
          }
          const unsigned prefixes = __ballot_sync(kAllLanes, word >= kPrefix);
          const int nearest = prefixes == 0 ? kWarp : __ffs(prefixes) - 1;
          int64_t part = lane <= nearest ? static_cast<int64_t>(word & kValue) : 0;
#pragma unroll
          for (int step = kWarp / 2; step > 0; step /= 2) part += __shfl_down_sync(kAllLanes, part, step);
          sum += part;  // right in lane 0
          if (prefixes != 0) break;
        }
      }
      if (lane == 0) {
        store_relaxed(words + block, kPrefix | (sum + own));
        shared = sum;
      }
    }
    __syncthreads();
    return shared;
  }
};

// Cells of a grid that is at most `most`: a negative side is none, and no sum of sizes overflows.
__device__ __forceinline__ int64_t grid_size(const int64_t* grid, int64_t most) {
  constexpr int64_t side = (int64_t{1} << 31) - 1;
  const int64_t rows = min(max(grid[0], int64_t{0}), side), columns = min(max(grid[1], int64_t{0}), side);
  return min(rows * columns, most);
}

// First index from `low` to `high` whose bound is above `place`; `high` if there is none.
__device__ __forceinline__ int64_t upper_bound(const int64_t* bounds, int64_t low, int64_t high, int64_t place) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (bounds[middle] > place) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace pixelrefer_fast::cuda
