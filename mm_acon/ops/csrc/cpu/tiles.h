// How CPU kernels walk over a tensor: in tiles of rows, in blocks of a row.
//
// A row is the elements of one sample and channel. Tiles are what threads
// share among themselves; which element lies in which tile does not depend on
// the number of threads, so sums per tile, added up in order, do not either.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "../common.h"

// What is written for AVX-512 and AVX2 is compiled everywhere on x86-64, and
// chosen by the processor.
#if defined(__x86_64__) && defined(__GNUC__)
#define MM_ACON_HAS_INTRINSICS 1
#endif

// Compiled for three levels of the x86-64 architecture, the best one chosen
// when the library is loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && \
    !defined(__clang__) && __GNUC__ >= 12
#define MM_ACON_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MM_ACON_CLONES
#endif

namespace mm_acon {

// Whether ATEN_CPU_CAPABILITY, PyTorch's own switch, asks for code of one of
// these levels whatever the processor has.
inline bool processor_is(std::initializer_list<const char*> levels) {
  const char* asked = std::getenv("ATEN_CPU_CAPABILITY");
  return asked &&
         std::any_of(levels.begin(), levels.end(), [&](const char* level) {
           return std::strcmp(asked, level) == 0;
         });
}

// Elements in a buffer for numbers that have to be converted or gathered;
// input, output and gradient stay in the L1 cache. In channels_last memory a
// tile takes a cache line of channels.
constexpr int kBlock = 1024, kBlockChannelsLast = 128, kTileChannels = 16;
constexpr int64_t kChunk = 16 * kBlock;

template <typename scalar_t>
struct Tiles {
  explicit Tiles(const View& view)
      : view(view),
        width(view.channels_last ? kTileChannels : 1),
        groups((view.channels + width - 1) / width),
        chunks((view.inner + kChunk - 1) / kChunk) {}

  int64_t count() const { return view.samples * groups * chunks; }

  // Calls f(sample, channel, chunk, begin, length) for every block of every
  // row, the blocks of a row and chunk in order on one thread.
  template <typename F>
  void for_blocks(const F& f) const {
    // What needs no buffer is not cut into blocks.
    const int64_t block = view.channels_last ? kBlockChannelsLast
                          : std::is_same_v<scalar_t, math_t<scalar_t>>
                              ? kChunk
                              : kBlock;
    const int64_t tile_size =
        std::min(kChunk, std::max<int64_t>(view.inner, 1)) * width;
    const int64_t grain = std::max<int64_t>(1, 32768 / tile_size);
    at::parallel_for(0, count(), grain, [&](int64_t first, int64_t end) {
      int64_t chunk = first % chunks, group = first / chunks % groups;
      int64_t sample = first / chunks / groups;
      for (int64_t tile = first; tile < end; ++tile) {
        const int64_t from = group * width;
        const int64_t to = std::min(view.channels, from + width);
        const int64_t stop = std::min(view.inner, (chunk + 1) * kChunk);
        for (int64_t p = chunk * kChunk; p < stop; p += block) {
          const int length =
              static_cast<int>(std::min<int64_t>(block, stop - p));
          for (int64_t c = from; c < to; ++c) f(sample, c, chunk, p, length);
        }
        // Counted up: on small maps divisions would cost as much as f.
        if (++chunk == chunks) {
          chunk = 0;
          if (++group == groups) group = 0, ++sample;
        }
      }
    });
  }

  View view;
  int64_t width, groups, chunks;
};

// A block as math_t: the tensor's own memory if that is what it holds.
template <typename scalar_t>
inline const math_t<scalar_t>* load(const scalar_t* from, int64_t stride,
                                    int length, math_t<scalar_t>* buffer) {
  if constexpr (std::is_same_v<scalar_t, math_t<scalar_t>>) {
    if (stride == 1) return from;
  }
  for (int i = 0; i < length; ++i) {
    buffer[i] = static_cast<math_t<scalar_t>>(from[i * stride]);
  }
  return buffer;
}

// Where to compute a block's output: in place if possible.
template <typename scalar_t>
inline math_t<scalar_t>* target(scalar_t* to, int64_t stride,
                                math_t<scalar_t>* buffer) {
  if constexpr (std::is_same_v<scalar_t, math_t<scalar_t>>) {
    if (stride == 1) return to;
  }
  return buffer;
}

template <typename scalar_t>
inline void store(const math_t<scalar_t>* computed, scalar_t* to,
                  int64_t stride, int length) {
  if constexpr (std::is_same_v<scalar_t, math_t<scalar_t>>) {
    if (stride == 1) return;
  }
  for (int i = 0; i < length; ++i) {
    to[i * stride] = static_cast<scalar_t>(computed[i]);
  }
}

// A gradient of a parameter's shape and dtype from its numbers.
inline at::Tensor as_gradient(const double* numbers,
                              const at::Tensor& parameter) {
  at::Tensor result = at::empty(
      parameter.sizes(),
      parameter.options().memory_format(at::MemoryFormat::Contiguous));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, parameter.scalar_type(), "mm_acon", [&] {
        std::copy_n(numbers, result.numel(), mutable_data<scalar_t>(result));
      });
  return result;
}

}  // namespace mm_acon
