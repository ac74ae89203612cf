// Warp-ballot compaction of the cells above zero, in raster order, in one pass over the masks.
//
//   first_cells  where each object's cells begin: a scan over the objects' sizes
//   compact      one block to kCells cells: ballots give each selected cell its rank in the block, the look-back what
//                the blocks before have selected; the block also knows the offset of each object that begins in it
//   finish       counts, and -1 behind the last patch
#include "ops.h"
#include "scan.cuh"

#include <algorithm>

namespace pixelrefer_fast::cuda {
namespace {

constexpr int kRounds = 8;                    // cells of one thread
constexpr int kCells = kThreads * kRounds;    // of one block
constexpr int kWords = kCells / kWarp;        // ballots of one block
constexpr int64_t kMostBlocks = 1 << 16;      // of a kernel that strides over its grid

__global__ void __launch_bounds__(kThreads) first_cells(
    const int64_t* __restrict__ grid_shapes,  // (objects, 2)
    int64_t objects,
    int64_t cells,
    LookBack blocks,
    int64_t* __restrict__ first  // (objects + 1,)
) {
  const int64_t block = blocks.block();
  const int64_t base = block * kScanTile + threadIdx.x * kScanItems;
  int64_t sizes[kScanItems], sum = 0, total;
#pragma unroll
  for (int i = 0; i < kScanItems; ++i) {
    // more cells than there are is as good as all of them
    sizes[i] = base + i < objects ? grid_size(grid_shapes + 2 * (base + i), cells) : 0;
    sum += sizes[i];
  }
  int64_t place = block_exclusive_sum(sum, total);
  place += blocks.before(block, total);
#pragma unroll
  for (int i = 0; i < kScanItems; ++i) {
    if (base + i <= objects) first[base + i] = place;
    place += sizes[i];
  }
}

__global__ void __launch_bounds__(kThreads) compact(
    const float* __restrict__ mask_grids,     // (cells,)
    int64_t cells,
    const int64_t* __restrict__ grid_shapes,  // (objects, 2)
    const int64_t* __restrict__ first,        // (objects + 1,)
    int64_t objects,
    int64_t capacity,
    LookBack blocks,
    int64_t* __restrict__ cell,    // (capacity,)
    int32_t* __restrict__ row,     // (capacity,)
    int32_t* __restrict__ column,  // (capacity,)
    int64_t* __restrict__ offsets  // (objects + 1,)
) {
  __shared__ unsigned ballots[kWords];
  __shared__ int before[kWords + 1];  // selected cells of the block before each ballot
  __shared__ int64_t range[2];        // objects that begin in this block

  const int64_t block = blocks.block();
  const int64_t start = block * kCells;
  const bool is_last = start + kCells >= cells;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t end = min(cells, first[objects]);  // cells behind the grids are not looked at

#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int word = i * kWarps + warp;
    const int64_t place = start + word * kWarp + lane;
    const unsigned ballot = __ballot_sync(kAllLanes, place < end && mask_grids[place] > 0);
    if (lane == 0) ballots[word] = ballot;
  }
  // the objects from range[0] to range[1] - 1 begin here; the last block takes all that are left, offsets[objects] too
  if (threadIdx.x == kWarp) range[0] = upper_bound(first, 0, objects + 1, start - 1);
  if (threadIdx.x == 2 * kWarp) {
    range[1] = is_last ? objects + 1 : upper_bound(first, 0, objects + 1, start + kCells - 1);
  }
  __syncthreads();

  int64_t total;
  const int64_t rank = block_exclusive_sum(threadIdx.x < kWords ? __popc(ballots[threadIdx.x]) : 0, total);
  if (threadIdx.x < kWords) before[threadIdx.x] = static_cast<int>(rank);
  if (threadIdx.x == 0) before[kWords] = static_cast<int>(total);
  const int64_t prefix = blocks.before(block, total);  // also waits for `before`

  for (int64_t object = range[0] + threadIdx.x; object < range[1]; object += kThreads) {
    const int inside = static_cast<int>(min(first[object] - start, int64_t{kCells}));
    const int word = inside / kWarp;
    const unsigned below = word < kWords ? ballots[word] & ((1u << (inside % kWarp)) - 1) : 0;
    offsets[object] = prefix + before[word] + __popc(below);
  }

#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int word = i * kWarps + warp;
    const unsigned ballot = ballots[word];
    const int64_t slot = prefix + before[word] + __popc(ballot & ((1u << lane) - 1));
    if (!(ballot >> lane & 1) || slot >= capacity) continue;
    const int64_t place = start + word * kWarp + lane;
    // the one before the first object that begins behind this cell; the object that the block starts in is range[0] - 1
    const int64_t object = upper_bound(first, range[0], range[1], place) - 1;
    const int64_t inside = place - first[object], columns = grid_shapes[2 * object + 1];
    int64_t r, c;
    if ((inside | columns) >> 32 == 0) {  // a 32-bit division takes a quarter of the instructions
      r = static_cast<uint32_t>(inside) / static_cast<uint32_t>(columns);
      c = static_cast<uint32_t>(inside) % static_cast<uint32_t>(columns);
    } else {
      r = inside / columns;
      c = inside % columns;
    }
    cell[slot] = place;
    row[slot] = static_cast<int32_t>(r);
    column[slot] = static_cast<int32_t>(c);
  }
}

__global__ void __launch_bounds__(kThreads) finish(
    const int64_t* __restrict__ offsets,  // (objects + 1,)
    int64_t objects,
    int64_t capacity,
    int64_t* __restrict__ counts,  // (objects,)
    int64_t* __restrict__ cell,    // (capacity,)
    int32_t* __restrict__ row,     // (capacity,)
    int32_t* __restrict__ column   // (capacity,)
) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t object = thread; object < objects; object += threads) {
    counts[object] = offsets[object + 1] - offsets[object];
  }
  for (int64_t slot = offsets[objects] + thread; slot < capacity; slot += threads) {
    cell[slot] = -1;
    row[slot] = -1;
    column[slot] = -1;
  }
}

int64_t scan_blocks(int64_t objects) { return objects / kScanTile + 1; }  // one more item: offsets end with the total
int64_t compact_blocks(int64_t cells) { return std::max<int64_t>(1, (cells + kCells - 1) / kCells); }

}  // namespace

// two tickets, the words of both look-backs, first cells
int64_t pack_objects_scratch(int64_t cells, int64_t objects) {
  return 2 + scan_blocks(objects) + compact_blocks(cells) + objects + 1;
}

void pack_objects(const float* mask_grids, int64_t cells, const int64_t* grid_shapes, int64_t objects,
                  int64_t capacity, int64_t* cell, int32_t* row, int32_t* column, int64_t* counts, int64_t* offsets,
                  int64_t* scratch, cudaStream_t stream) {
  auto* words = reinterpret_cast<unsigned long long*>(scratch);
  const int64_t scans = scan_blocks(objects), compacts = compact_blocks(cells);
  const LookBack of_objects{words, words + 2}, of_cells{words + 1, words + 2 + scans};
  int64_t* first = scratch + 2 + scans + compacts;
  cudaMemsetAsync(words, 0, (2 + scans + compacts) * sizeof(*words), stream);
  launch(first_cells, scans, kThreads, stream, grid_shapes, objects, cells, of_objects, first);
  launch(compact, compacts, kThreads, stream, mask_grids, cells, grid_shapes, first, objects, capacity, of_cells, cell,
         row, column, offsets);
  const int64_t items = std::max(objects, capacity);
  const int64_t finishing = std::min(kMostBlocks, std::max<int64_t>(1, (items + kThreads - 1) / kThreads));
  launch(finish, finishing, kThreads, stream, offsets, objects, capacity, counts, cell, row, column);
}

}  // namespace pixelrefer_fast::cuda
