// CUDA's execution model on the CPU, as far as csrc/cuda/ uses it: it shows wrong indices, wrong sums, barriers that not
// all threads reach, and reads and writes outside their arrays (under AddressSanitizer), but nothing about speed.
//
// A thread of a block is a fiber, a block belongs to a thread of the system, so shared memory is thread_local. Several
// blocks run at once, which is what the look-back of a scan is about. Fibers change places at barriers only.
#pragma once

#include <cuda_runtime_api.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static thread_local

struct uint4 {
  uint32_t x, y, z, w;
};

namespace cuda_on_cpu {

enum class Wait { none, warp, block, done };
constexpr size_t kStack = 1 << 16;
constexpr int kSystemThreads = 3;

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  Wait wait = Wait::none;
  uint64_t deposited = 0;  // for the other lanes of the warp
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  int current = 0;
  int64_t index = 0, count = 0;
  std::function<void()> body;
};

inline thread_local Block* block = nullptr;

inline void wait_for(Wait what) {
  Fiber& self = block->fibers[block->current];
  self.wait = what;
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(what == Wait::done ? nullptr : &fake, block->scheduler_stack, block->scheduler_size);
  swapcontext(&self.context, &block->scheduler);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

inline void enter() {
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_size);
  block->body();
  wait_for(Wait::done);
}

// Threads `begin` to `end` may go on if all of them that are not done wait for the same.
inline bool release(Block& at, int begin, int end, Wait what) {
  int waiting = 0, live = 0;
  for (int i = begin; i < end; ++i) {
    live += at.fibers[i].wait != Wait::done;
    waiting += at.fibers[i].wait == what;
  }
  if (waiting == 0 || waiting != live) return false;
  if (what == Wait::warp && live != end - begin) return false;  // a lane of the full mask has left
  for (int i = begin; i < end; ++i) {
    if (at.fibers[i].wait == what) at.fibers[i].wait = Wait::none;
  }
  return true;
}

inline void run_block(int64_t index, int64_t count, int threads, const std::function<void()>& body) {
  Block own;
  own.index = index;
  own.count = count;
  own.body = body;
  own.fibers.resize(threads);
  block = &own;
  static thread_local const std::unique_ptr<char[]> stacks(new char[threads * kStack]);
  ASAN_UNPOISON_MEMORY_REGION(stacks.get(), threads * kStack);  // frames of the last block that were never left
  for (Fiber& fiber : own.fibers) {
    fiber.stack = stacks.get() + (&fiber - own.fibers.data()) * kStack;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (int done = 0; done < threads;) {
    bool moved = false;
    done = 0;
    for (int i = 0; i < threads; ++i) {
      if (own.fibers[i].wait == Wait::none) {
        own.current = i;
        moved = true;
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, own.fibers[i].stack, kStack);
        swapcontext(&own.scheduler, &own.fibers[i].context);
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
      }
      done += own.fibers[i].wait == Wait::done;
    }
    for (int warp = 0; warp < threads; warp += 32) moved |= release(own, warp, warp + 32, Wait::warp);
    moved |= release(own, 0, threads, Wait::block);
    if (!moved && done < threads) {
      std::fprintf(stderr, "block %ld: a barrier that not all threads reach\n", static_cast<long>(index));
      std::abort();
    }
  }
}

// What each lane of the warp has deposited, by lane.
template <typename T>
std::vector<T> exchange(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const int first = block->current / 32 * 32;
  block->fibers[block->current].deposited = bits;
  wait_for(Wait::warp);
  std::vector<T> all(32);
  for (int lane = 0; lane < 32; ++lane) std::memcpy(&all[lane], &block->fibers[first + lane].deposited, sizeof(T));
  wait_for(Wait::warp);  // before a lane deposits again
  return all;
}

struct ThreadIndex {
  struct {
    operator unsigned() const { return static_cast<unsigned>(block->current); }
  } x;
};
struct BlockIndex {
  struct {
    operator unsigned() const { return static_cast<unsigned>(block->index); }
  } x;
};
struct GridSize {
  struct {
    operator unsigned() const { return static_cast<unsigned>(block->count); }
  } x;
};

}  // namespace cuda_on_cpu

inline constexpr cuda_on_cpu::ThreadIndex threadIdx;
inline constexpr cuda_on_cpu::BlockIndex blockIdx;
inline constexpr cuda_on_cpu::GridSize gridDim;

inline void __syncthreads() { cuda_on_cpu::wait_for(cuda_on_cpu::Wait::block); }

inline void __syncwarp() { cuda_on_cpu::exchange(0); }

inline unsigned __ballot_sync(unsigned, bool predicate) {
  unsigned votes = 0;
  const auto all = cuda_on_cpu::exchange<int>(predicate);
  for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(all[lane]) << lane;
  return votes;
}

template <typename T>
T __shfl_up_sync(unsigned, T value, int step) {
  const int lane = cuda_on_cpu::block->current % 32;
  const auto all = cuda_on_cpu::exchange(value);
  return lane >= step ? all[lane - step] : value;
}

template <typename T>
T __shfl_down_sync(unsigned, T value, int step) {
  const int lane = cuda_on_cpu::block->current % 32;
  const auto all = cuda_on_cpu::exchange(value);
  return lane + step < 32 ? all[lane + step] : value;
}

inline int __reduce_max_sync(unsigned, int value) {
  const auto all = cuda_on_cpu::exchange(value);
  return *std::max_element(all.begin(), all.end());
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits == 0 ? 32 : __builtin_clz(bits); }
inline unsigned __brev(unsigned bits) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (bits >> i & 1u) << (31 - i);
  return reversed;
}
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <typename T>
void atomicMax(T* at, T value) {
  T seen = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange_n(at, &seen, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

namespace pixelrefer_fast::cuda {

using std::max;
using std::min;

inline unsigned long long load_relaxed(const unsigned long long* word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
inline void store_relaxed(unsigned long long* word, unsigned long long value) {
  __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t, Arguments... arguments) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t index; (index = next++) < blocks;) {
      cuda_on_cpu::run_block(index, blocks, threads, [&] { kernel(arguments...); });
    }
  };
  std::vector<std::thread> pool;
  for (int i = 0; i < std::min<int64_t>(cuda_on_cpu::kSystemThreads, blocks); ++i) pool.emplace_back(work);
  for (std::thread& thread : pool) thread.join();
}

}  // namespace pixelrefer_fast::cuda
