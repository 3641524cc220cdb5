// How CPU kernels walk over a tensor: in tiles of rows, in patches of a tile.
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
#include <immintrin.h>
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

// Places in a chunk, over which the sums of one tile go.
constexpr int kChunk = 16384, kChunkChannelsLast = 512;
constexpr int kCacheLine = 64;
// Where the channels of a place are taken as a row: most channels of a tile,
// and how many rows are added up before float64 adds them.
constexpr int kWidth = 1024, kRowsAtOnce = 16;

// `rows` channels by `length` places of a sample; a chunk of a row is what
// the sums of one tile are over.
struct Patch {
  int64_t sample, channel, chunk, place;
  int rows, length;
  bool starts_chunk, channels_last;

  // Where it starts in an array.
  int64_t in(const Steps& steps) const {
    return steps.to(sample, channel, place);
  }
};

// Of channels_last memory a tile takes `width` channels, and its neighbours
// come next, so that memory is read nearly in order.
struct Tiles {
  // `patch`: most places of a patch in channels_last memory.
  Tiles(const View& view, int64_t width_channels_last,
        int64_t patch = kChunkChannelsLast)
      : view(view),
        width(view.channels_last ? width_channels_last : 1),
        chunk_size(view.channels_last ? kChunkChannelsLast : kChunk),
        groups((view.channels + width - 1) / width),
        chunks((view.inner + chunk_size - 1) / chunk_size),
        block(view.channels_last ? patch : kChunk) {}

  int64_t count() const { return view.samples * groups * chunks; }

  // Calls f(patch) for every patch of every tile, those of a tile in
  // order on one thread.
  template <typename F>
  void for_patches(const F& f) const {
    const int64_t tile_size =
        std::min(chunk_size, std::max<int64_t>(view.inner, 1)) * width;
    const int64_t grain = std::max<int64_t>(1, 32768 / tile_size);
    // In the order of memory.
    const int64_t inner = view.channels_last ? groups : chunks;
    const int64_t outer = view.channels_last ? chunks : groups;
    at::parallel_for(0, count(), grain, [&](int64_t first, int64_t end) {
      int64_t i = first % inner, o = first / inner % outer;
      int64_t sample = first / inner / outer;
      for (int64_t tile = first; tile < end; ++tile) {
        const int64_t chunk = view.channels_last ? o : i;
        const int64_t channel = (view.channels_last ? i : o) * width;
        const int64_t start = chunk * chunk_size;
        const int64_t rows = std::min(width, view.channels - channel);
        const int64_t stop = std::min(view.inner, start + chunk_size);
        for (int64_t p = start; p < stop; p += block) {
          f(Patch{sample, channel, chunk, p, static_cast<int>(rows),
                  static_cast<int>(std::min(block, stop - p)), p == start,
                  view.channels_last});
        }
        // Counted up: on small maps divisions would cost as much as f.
        if (++i == inner) {
          i = 0;
          if (++o == outer) o = 0, ++sample;
        }
      }
    });
  }

  View view;
  int64_t width, chunk_size, groups, chunks, block;
};

// A number for arithmetic, and back. bfloat16 as PyTorch converts it, in a
// form that becomes vector code.
template <typename S>
MM_ACON_HD math_t<S> widened(S x) {
  return static_cast<math_t<S>>(x);
}
template <typename S>
MM_ACON_HD S narrowed(math_t<S> x) {
  return static_cast<S>(x);
}
template <>
MM_ACON_HD float widened(at::BFloat16 x) {
  const uint32_t bits = uint32_t(x.x) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(bits));
  return result;
}
template <>
MM_ACON_HD at::BFloat16 narrowed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  at::BFloat16 result;
  result.x = static_cast<uint16_t>(x == x ? even : 0x7fc0);
  return result;
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
