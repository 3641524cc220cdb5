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

// Numbers in a buffer for what has to be converted or turned round: input,
// output and gradient stay in the L1 cache.
constexpr int kBlock = 1024, kBlockChannelsLast = 128;
constexpr int64_t kChunk = 16 * kBlock;
constexpr int64_t kChunkChannelsLast = 4 * kBlockChannelsLast;
// Channels in a cache line, of the smallest type.
constexpr int kCacheLine = 64, kMaxWidth = kCacheLine / 2;

// `rows` channels by `length` places of a sample; a chunk of a row is what
// the sums of one tile are over.
struct Patch {
  int64_t sample, channel, chunk, place;
  int rows, length;
  bool starts_chunk, channels_last;
};

// Of channels_last memory a tile takes `width` channels, and its neighbours
// come next, so that memory is read nearly in order.
template <typename scalar_t>
struct Tiles {
  Tiles(const View& view, int64_t width_channels_last)
      : view(view),
        width(view.channels_last ? width_channels_last : 1),
        chunk_size(view.channels_last ? kChunkChannelsLast : kChunk),
        groups((view.channels + width - 1) / width),
        chunks((view.inner + chunk_size - 1) / chunk_size) {}

  int64_t count() const { return view.samples * groups * chunks; }

  // Calls f(patch) for every block of every tile, the blocks of a tile in
  // order on one thread.
  template <typename F>
  void for_patches(const F& f) const {
    // What needs no buffer is not cut into blocks.
    const int64_t block = view.channels_last ? kBlockChannelsLast
                          : std::is_same_v<scalar_t, math_t<scalar_t>>
                              ? kChunk
                              : kBlock;
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

  // Calls f(line) for what lies side by side: a part of a row, or the channels
  // of a place as if they were one.
  template <typename F>
  void for_lines(const F& f) const {
    for_patches([&](const Patch& patch) {
      if (!patch.channels_last) return f(patch);
      Patch line{patch};
      line.channels_last = false;
      line.rows = 1;
      line.length = patch.rows;
      for (int i = 0; i < patch.length; ++i, ++line.place) f(line);
    });
  }

  View view;
  int64_t width, chunk_size, groups, chunks;
};

// to[j][i] = from[i][j] for 4x4 numbers whose rows lie so far apart.
template <typename T>
inline void turn4(const T* from, int64_t from_step, T* to, int64_t to_step) {
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 4; ++i) to[j * to_step + i] = from[i * from_step + j];
  }
}
#if defined(MM_ACON_HAS_INTRINSICS)
inline void turn4(const float* from, int64_t from_step, float* to,
                  int64_t to_step) {
  __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_step);
  __m128 c = _mm_loadu_ps(from + 2 * from_step);
  __m128 d = _mm_loadu_ps(from + 3 * from_step);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a);
  _mm_storeu_ps(to + to_step, b);
  _mm_storeu_ps(to + 2 * to_step, c);
  _mm_storeu_ps(to + 3 * to_step, d);
}
#endif

// In channels_last memory the next line of the same channels lies far away,
// where no processor looks by itself.
template <bool write, typename T>
inline void fetch_ahead(const T* here, int64_t place_step) {
#if defined(__GNUC__)
  for (int i = 32; i < 36; ++i) {
    __builtin_prefetch(here + i * place_step, write);
  }
#endif
}

// to[j][i] = from[i][j] for `height` rows of `width` numbers.
template <typename T>
inline void turn(const T* from, int64_t from_step, int height, int width,
                 T* to, int64_t to_step) {
  int i = 0;
  for (; i + 4 <= height; i += 4) {
    int j = 0;
    for (; j + 4 <= width; j += 4) {
      turn4(from + i * from_step + j, from_step, to + j * to_step + i,
            to_step);
    }
    for (; j < width; ++j) {
      for (int k = i; k < i + 4; ++k) {
        to[j * to_step + k] = from[k * from_step + j];
      }
    }
  }
  for (; i < height; ++i) {
    for (int j = 0; j < width; ++j)
      to[j * to_step + i] = from[i * from_step + j];
  }
}

template <typename From, typename To>
inline void convert(const From* from, int length, To* to) {
  for (int i = 0; i < length; ++i) to[i] = static_cast<To>(from[i]);
}

// As PyTorch converts, in a form that becomes vector code.
MM_ACON_CLONES static void convert(const at::BFloat16* from, int length,
                                   float* to) {
#pragma omp simd
  for (int i = 0; i < length; ++i) {
    const uint32_t bits = uint32_t(from[i].x) << 16;
    std::memcpy(to + i, &bits, sizeof(bits));
  }
}
MM_ACON_CLONES static void convert(const float* from, int length,
                                   at::BFloat16* to) {
#pragma omp simd
  for (int i = 0; i < length; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof(bits));
    const uint32_t even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    to[i].x = static_cast<uint16_t>(from[i] == from[i] ? even : 0x7fc0);
  }
}

// Rows of an array that is read: its own memory if that holds them as math_t.
// A null pointer costs nothing and has no rows, here and below.
template <typename scalar_t>
class Input {
  using T = math_t<scalar_t>;
  static constexpr bool kConverts = !std::is_same_v<scalar_t, T>;

 public:
  Input(const scalar_t* data, const Steps& steps, const Patch& patch)
      : rows_(buffer_) {
    if (!data) return;
    const scalar_t* from =
        data + steps.to(patch.sample, patch.channel, patch.place);
    if (patch.channels_last) {
      for (int p = 0; p < patch.length; p += 4) {
        const int count = std::min(4, patch.length - p);
        const scalar_t* here = from + p * steps.place;
        fetch_ahead<false>(here, steps.place);
        if constexpr (kConverts) {
          T wide[4 * kMaxWidth];
          for (int i = 0; i < count; ++i) {
            convert(here + i * steps.place, patch.rows, wide + i * kMaxWidth);
          }
          turn(wide, kMaxWidth, count, patch.rows, buffer_ + p,
               kBlockChannelsLast);
        } else {
          turn(here, steps.place, count, patch.rows, buffer_ + p,
               kBlockChannelsLast);
        }
      }
    } else if constexpr (kConverts) {
      convert(from, patch.length, buffer_);
    } else {
      rows_ = from;
    }
  }

  const T* operator[](int row) const {
    return rows_ + row * kBlockChannelsLast;
  }

 private:
  const T* rows_;
  T buffer_[kMaxWidth * kBlockChannelsLast];
};

// Rows of an array that is written, by store() at last.
template <typename scalar_t>
class Output {
  using T = math_t<scalar_t>;
  static constexpr bool kConverts = !std::is_same_v<scalar_t, T>;

 public:
  Output(scalar_t* data, const Steps& steps, const Patch& patch)
      : to_(data), rows_(buffer_) {
    if (!data) return;
    to_ += steps.to(patch.sample, patch.channel, patch.place);
    if constexpr (!kConverts) {
      if (!patch.channels_last) rows_ = to_;
    }
  }

  T* operator[](int row) { return rows_ + row * kBlockChannelsLast; }

  void store(const Steps& steps, const Patch& patch) {
    if (patch.channels_last) {
      for (int p = 0; p < patch.length; p += 4) {
        const int count = std::min(4, patch.length - p);
        scalar_t* here = to_ + p * steps.place;
        fetch_ahead<true>(here, steps.place);
        if constexpr (kConverts) {
          T wide[4 * kMaxWidth];
          turn(buffer_ + p, kBlockChannelsLast, patch.rows, count, wide,
               kMaxWidth);
          for (int i = 0; i < count; ++i) {
            convert(wide + i * kMaxWidth, patch.rows, here + i * steps.place);
          }
        } else {
          turn(buffer_ + p, kBlockChannelsLast, patch.rows, count, here,
               steps.place);
        }
      }
    } else if constexpr (kConverts) {
      convert(buffer_, patch.length, to_);
    }
  }

 private:
  scalar_t* to_;
  T* rows_;
  T buffer_[kMaxWidth * kBlockChannelsLast];
};
static_assert(kBlock <= kMaxWidth * kBlockChannelsLast);

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
