// The sums of PWLU's backward pass, for all its forms on the CPU.
#pragma once

#include "tiles.h"

namespace mm_acon {

// How many elements are found before they are added: memory fetches the next
// ones meanwhile.
constexpr int kBlock = 128;

// Of every piece the sums of g and of g (x - knot), which are added at once,
// as one register, to one of several copies, so that no addition waits for the
// one before; then in float64 to the bins, as often as keeps them exact. More
// pieces than there is room for go to the bins at once. All of it is inlined,
// so that it is compiled for the processor that the form is for.
template <typename T>
class Sums {
 public:
  MM_ACON_HD Sums(int count, double* bins)
      : count_(count), bins_(bins), added_(0) {
    if (count <= kMaxPieces) clear();
  }

  MM_ACON_HD void add(const int32_t* piece, const T* pairs, int n) {
    if (count_ > kMaxPieces) {
      for (int i = 0; i < n; ++i) {
        bins_[2 * piece[i]] += pairs[2 * i];
        bins_[2 * piece[i] + 1] += pairs[2 * i + 1];
      }
      return;
    }
    Pair* const to0 = reinterpret_cast<Pair*>(copies_);
    Pair *const to1 = to0 + count_, *const to2 = to1 + count_;
    Pair* const to3 = to2 + count_;
    const Pair* from = reinterpret_cast<const Pair*>(pairs);
    // Unsigned, so that no index is extended by a sign.
    const uint32_t* at = reinterpret_cast<const uint32_t*>(piece);
    const Pair* const end = from + n;
#pragma GCC unroll 4
    for (; from + kCopies <= end; from += kCopies, at += kCopies) {
      to0[at[0]] += from[0];
      to1[at[1]] += from[1];
      to2[at[2]] += from[2];
      to3[at[3]] += from[3];
    }
    for (; from < end; ++from, ++at) to0[*at] += *from;
    added_ += n;
    if (added_ < kMost) return;
    finish();
    clear();
  }

  MM_ACON_HD void finish() {
    if (count_ > kMaxPieces) return;
    const T *from0 = copies_, *from1 = from0 + 2 * count_;
    const T *from2 = from1 + 2 * count_, *from3 = from2 + 2 * count_;
    double* bins = bins_;
    const int n = 2 * count_;
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      bins[i] = bins[i] + from0[i] + from1[i] + from2[i] + from3[i];
    }
  }

 private:
  typedef T Pair __attribute__((vector_size(2 * sizeof(T)),
                                aligned(alignof(T)), may_alias));
  static constexpr int kCopies = 4, kMaxPieces = 32, kMost = 1024;

  MM_ACON_HD void clear() {
    std::memset(copies_, 0, kCopies * count_ * sizeof(Pair));
    added_ = 0;
  }

  int count_;
  double* bins_;
  int added_;
  alignas(kCacheLine) T copies_[kCopies * 2 * kMaxPieces];
};

}  // namespace mm_acon
