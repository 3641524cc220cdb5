// channels_last memory turned into rows of numbers, and back: a cache line of
// channels by so many places.
#pragma once

#include "avx2.h"
#include "avx512.h"
#include "tiles.h"

namespace mm_acon {

// Channels of a patch are those in a cache line; of places there are so many
// that what is done once a row does not count, and that input, gradient and
// output fit the L2 cache.
constexpr int kPatchBytes = 32768;
template <typename scalar_t>
constexpr int kPatchRows = kCacheLine / sizeof(scalar_t);
template <typename scalar_t>
constexpr int kPatchPlaces =
    kPatchBytes / (kPatchRows<scalar_t> * sizeof(math_t<scalar_t>));

// to[j][i] = from[i][j] for `height` rows of `width` numbers, at most kSide.
constexpr int kSide = 16;
template <typename From, typename To>
inline void turn(const From* from, int64_t from_step, int height, int width,
                 To* to, int64_t to_step) {
#if defined(MM_ACON_HAS_INTRINSICS)
  if constexpr (std::is_same_v<math_t<From>, float>) {
    if (height == kSide && width == kSide) {
      if (avx512::available()) {
        return avx512::turn(from, from_step, to, to_step);
      }
      if (avx2::available()) {
        for (int i = 0; i < kSide; i += avx2::kLanes) {
          for (int j = 0; j < kSide; j += avx2::kLanes) {
            avx2::turn(from + i * from_step + j, from_step,
                       to + j * to_step + i, to_step);
          }
        }
        return;
      }
    }
  }
#endif
  for (int i = 0; i < height; ++i) {
    for (int j = 0; j < width; ++j) {
      to[j * to_step + i] = static_cast<To>(from[i * from_step + j]);
    }
  }
}

// In channels_last memory the next line of the same channels lies far away,
// where no processor looks by itself. To the L2 cache, since in the L1 cache
// lines that lie so far apart would drive each other out.
constexpr int kAhead = 6 * kSide;
template <bool kWrite, typename T>
inline void fetch_ahead(const T* here, int64_t place_step) {
#if defined(__GNUC__)
  for (int i = kAhead; i < kAhead + kSide; ++i) {
    __builtin_prefetch(here + i * place_step, kWrite, 2);
  }
#endif
}

// The numbers of a patch as rows of one channel each.
template <typename scalar_t>
class Turned {
 public:
  Turned(const Steps& steps, const Patch& patch)
      : steps_(steps), patch_(patch) {}

  void load(const scalar_t* data) {
    const scalar_t* from = data + patch_.in(steps_);
    for (int p = 0; p < patch_.length; p += kSide) {
      const scalar_t* here = from + p * steps_.place;
      fetch_ahead<false>(here, steps_.place);
      for (int c = 0; c < patch_.rows; c += kSide) {
        turn(here + c, steps_.place, std::min(kSide, patch_.length - p),
             std::min(kSide, patch_.rows - c), (*this)[c] + p, kStep);
      }
    }
  }

  void store(scalar_t* data) {
    scalar_t* to = data + patch_.in(steps_);
    for (int p = 0; p < patch_.length; p += kSide) {
      scalar_t* here = to + p * steps_.place;
      fetch_ahead<true>(here, steps_.place);
      for (int c = 0; c < patch_.rows; c += kSide) {
        turn((*this)[c] + p, kStep, std::min(kSide, patch_.rows - c),
             std::min(kSide, patch_.length - p), here + c, steps_.place);
      }
    }
  }

  math_t<scalar_t>* operator[](int row) { return numbers_ + row * kStep; }

 private:
  // More than a power of two, by which rows would drive each other out of the
  // cache.
  static constexpr int kStep = kPatchPlaces<scalar_t> + kSide;

  Steps steps_;
  Patch patch_;
  alignas(kCacheLine) math_t<scalar_t> numbers_[kPatchRows<scalar_t> * kStep];
};

}  // namespace mm_acon
