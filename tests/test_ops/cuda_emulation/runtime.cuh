// Runs CUDA kernels on the CPU, so that their logic is tested without a GPU.
//
// Every thread of a block is a fiber. A fiber runs until it waits for its warp
// or block, in an order that changes, so that a missing barrier shows. A
// barrier that not all threads reach, and an element of a tensor that is not
// aligned or does not exist, are errors. All memory is NaN until it is
// written, and lies between guards of NaN that are looked at when it is freed.
//
// Included before all else, this takes the place of csrc/cuda/runtime.cuh.
#ifndef MM_ACON_CUDA_RUNTIME
#define MM_ACON_CUDA_RUNTIME

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <setjmp.h>
#include <torch/library.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#define MM_ACON_DEVICE CPU
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace mm_acon {

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

class Emulator {
 public:
  static Emulator& get() {
    static Emulator emulator;
    return emulator;
  }

  void run(unsigned blocks, int threads, int64_t shared_bytes,
           std::function<void()> kernel) {
    ++launches_;
    kernel_ = std::move(kernel);
    fibers_.resize(threads);
    for (auto& fiber : fibers_) {
      if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    }
    blockDim.x = threads;
    gridDim.x = blocks;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
      // A guard behind what was asked for.
      shared_.assign(shared_bytes / 16 + 2, {~0ull, ~0ull});
      run_block();
      const auto* bytes = reinterpret_cast<unsigned char*>(shared_.data());
      for (size_t i = shared_bytes; i < shared_.size() * 16; ++i) {
        TORCH_CHECK(bytes[i] == 0xff, "a write outside shared memory");
      }
    }
    TORCH_CHECK(error_.empty(), std::exchange(error_, ""));
  }

  void* shared() { return shared_.data(); }

  int64_t launches() const { return launches_; }

  enum State { kRuns, kWaitsForWarp, kWaitsForBlock, kDone };

  void wait(State state) {
    fibers_[current_].state = state;
    change(fibers_[current_].here, scheduler_);
  }

  // Slots change, so that nobody writes what others have not read yet.
  template <typename T>
  T exchange(T value, int from) {
    const int turn = fibers_[current_].turn++ % 2;
    std::memcpy(fibers_[current_].slot[turn], &value, sizeof(T));
    wait(kWaitsForWarp);
    std::memcpy(&value, fibers_[current_ / 32 * 32 + from].slot[turn],
                sizeof(T));
    return value;
  }

  int lane() const { return current_ % 32; }

  void fail(const std::string& error) { error_ = error; }

 private:
  static constexpr size_t kStack = 64 * 1024;

  struct Fiber {
    ucontext_t start;
    jmp_buf here;
    bool started;
    std::unique_ptr<char[]> stack;
    State state;
    unsigned turn;
    char slot[2][16];
  };

  // Without the system calls of swapcontext.
  static void change(jmp_buf& from, jmp_buf& to) {
    if (_setjmp(from) == 0) _longjmp(to, 1);
  }

  static void start() {
    Emulator& self = get();
    self.kernel_();
    self.wait(kDone);
  }

  void resume(Fiber& fiber) {
    if (std::exchange(fiber.started, true)) {
      change(scheduler_, fiber.here);
    } else if (_setjmp(scheduler_) == 0) {
      setcontext(&fiber.start);
    }
  }

  void run_block() {
    const int threads = static_cast<int>(fibers_.size());
    for (auto& fiber : fibers_) {
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = fiber.stack.get();
      fiber.start.uc_stack.ss_size = kStack;
      makecontext(&fiber.start, start, 0);
      fiber.started = false;
      fiber.state = kRuns;
      fiber.turn = 0;
    }
    while (true) {
      random_ = random_ * 1664525 + 1013904223;
      const bool backwards = random_ >> 31;
      for (int i = 0; i < threads; ++i) {
        current_ = backwards ? threads - 1 - i : i;
        if (fibers_[current_].state != kRuns) continue;
        threadIdx.x = current_;
        resume(fibers_[current_]);
      }
      const int done = release(0, threads, kDone, kDone);
      if (done == threads) return;
      bool released = release(0, threads, kWaitsForBlock, kRuns) == threads;
      for (int warp = 0; warp < threads; warp += 32) {
        released |= release(warp, warp + 32, kWaitsForWarp, kRuns) == 32;
      }
      TORCH_CHECK(released, "a barrier that not all threads reach");
    }
  }

  // Lets a group go on if all of it is in one state; how many are.
  int release(int first, int end, State from, State to) {
    int count = 0;
    for (int i = first; i < end; ++i) count += fibers_[i].state == from;
    if (count == end - first) {
      for (int i = first; i < end; ++i) fibers_[i].state = to;
    }
    return count;
  }

  std::function<void()> kernel_;
  std::vector<Fiber> fibers_;
  std::vector<std::pair<uint64_t, uint64_t>> shared_;
  jmp_buf scheduler_;
  int current_ = 0;
  uint32_t random_ = 1;
  std::string error_;
  int64_t launches_ = 0;
};

// Memory between guards; all of it NaN, in any dtype, at first. What torch
// itself calls is not the same in every version: hence no `override`.
struct GuardedAllocator final : c10::Allocator {
  static constexpr size_t kGuard = 64;

  c10::DataPtr allocate(size_t bytes) const { return guarded(bytes); }
  c10::DataPtr allocate(size_t bytes) { return guarded(bytes); }

  static c10::DataPtr guarded(size_t bytes) {
    const size_t all = bytes + 2 * kGuard;
    char* memory =
        static_cast<char*>(std::aligned_alloc(64, (all + 63) / 64 * 64));
    std::memset(memory, 0xff, all);
    const std::lock_guard<std::mutex> lock(mutex);
    sizes[memory] = bytes;
    return {memory + kGuard, memory, &release, at::Device(at::kCPU)};
  }

  static void release(void* context) {
    const auto* memory = static_cast<unsigned char*>(context);
    const std::lock_guard<std::mutex> lock(mutex);
    const size_t end = kGuard + sizes[context];
    for (size_t i = 0; i < kGuard; ++i) {
      intact &= memory[i] == 0xff && memory[end + i] == 0xff;
    }
    sizes.erase(context);
    std::free(context);
  }

  static bool contains(const void* at, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto next = sizes.upper_bound(at);
    if (next == sizes.begin()) return false;
    const auto& [memory, size] = *--next;
    const auto offset =
        static_cast<const char*>(at) - static_cast<const char*>(memory);
    return offset >= static_cast<ptrdiff_t>(kGuard) &&
           offset + bytes <= kGuard + size;
  }

  void copy_data(void* to, const void* from, size_t bytes) const {
    std::memcpy(to, from, bytes);
  }

  inline static std::map<const void*, size_t> sizes;
  inline static std::mutex mutex;
  inline static bool intact = true;
};

inline void __syncthreads() { Emulator::get().wait(Emulator::kWaitsForBlock); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int offset) {
  if (mask != 0xffffffff)
    Emulator::get().fail("a shuffle of a part of a warp");
  return Emulator::get().exchange(value, Emulator::get().lane() ^ offset);
}

inline void* shared_memory() { return Emulator::get().shared(); }

template <typename T>
void check_access(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % std::min<size_t>(sizeof(T), 16) != 0) {
    Emulator::get().fail("an access that is not aligned");
  }
  if (!GuardedAllocator::contains(at, sizeof(T))) {
    Emulator::get().fail("an access outside of a tensor");
  }
}

template <typename T>
T read(const T* from) {
  check_access(from);
  return *from;
}

template <typename T>
void write(T* to, const T& value) {
  check_access(to);
  *to = value;
}

// Those of an H100.
inline int64_t shared_limit() { return 227 * 1024; }
inline int64_t shared_of_each(int blocks) {
  return 228 * 1024 / blocks - 1024;
}

struct DeviceGuard {
  explicit DeviceGuard(const at::Device&) {}
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads,
            int64_t shared, const Arguments&... arguments) {
  TORCH_CHECK(blocks > 0 && blocks < (int64_t{1} << 31), blocks, " blocks");
  TORCH_CHECK(threads > 0 && threads <= 1024 && threads % 32 == 0);
  TORCH_CHECK(shared <= shared_limit());
  Emulator::get().run(blocks, threads, shared, [&] { kernel(arguments...); });
}

// In use as soon as the library is loaded.
inline const bool installed = [] {
  static GuardedAllocator allocator;
  c10::SetCPUAllocator(&allocator);
  return true;
}();

}  // namespace mm_acon

#endif
