// PWLU on blocks of floats with AVX-512: the table of up to 32 pieces lies in
// two registers, so that looking a number up is one permutation instead of a
// gather from memory.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define MM_ACON_HAS_AVX512_PATH 1

#include <immintrin.h>

#include "../pwlu_math.h"

namespace mm_acon {
namespace avx512 {

#define MM_ACON_AVX512 __attribute__((target("avx512f")))

constexpr int kMaxPieces = 32;

inline bool available() {
  static const bool found = __builtin_cpu_supports("avx512f");
  return found;
}

struct Table {
  __m512 low, high;

  MM_ACON_AVX512 explicit Table(const float* numbers)
      : low(_mm512_loadu_ps(numbers)), high(_mm512_loadu_ps(numbers + 16)) {}

  MM_ACON_AVX512 __m512 operator[](__m512i index) const {
    return _mm512_permutex2var_ps(low, index, high);
  }
};

// A channel's numbers, padded to whole registers.
struct Padded {
  float knot[kMaxPieces], start[kMaxPieces], slope[kMaxPieces];
  float from[kMaxPieces], to[kMaxPieces];

  explicit Padded(const PwluPieces<float>& pieces) {
    for (int j = 0; j < kMaxPieces; ++j) {
      const int k = j <= pieces.last ? j : pieces.last;
      knot[j] = pieces.knot[k];
      start[j] = pieces.start[k];
      slope[j] = pieces.slope[k];
      // Where piece j ends on either side; no number lies beyond the outer
      // ones, and no comparison with NaN holds.
      from[j] = k == 0 ? -std::numeric_limits<float>::infinity() : knot[j];
      to[j] = k == pieces.last ? std::numeric_limits<float>::quiet_NaN()
                               : pieces.knot[k + 1];
    }
  }
};

// The same steps as PwluPieces<float>::find.
MM_ACON_AVX512 inline __m512i find(__m512 x, __m512 left, __m512 inverse,
                                   __m512 last, const Table& from,
                                   const Table& to) {
  __m512 position = _mm512_add_ps(
      _mm512_mul_ps(_mm512_sub_ps(x, left), inverse), _mm512_set1_ps(1.f));
  // max gives its second operand for NaN.
  position = _mm512_max_ps(position, _mm512_setzero_ps());
  position = _mm512_min_ps(position, last);
  __m512i j = _mm512_cvttps_epi32(position);
  const __m512i one = _mm512_set1_epi32(1);
  j = _mm512_mask_sub_epi32(j, _mm512_cmp_ps_mask(x, from[j], _CMP_LT_OQ), j,
                            one);
  return _mm512_mask_add_epi32(j, _mm512_cmp_ps_mask(x, to[j], _CMP_GE_OQ), j,
                               one);
}

// The functions below do whole registers and return how many elements that
// was. Masked stores at the end would be simpler, but a masked store to memory
// that is in no cache costs several times an ordinary one.

MM_ACON_AVX512 inline int forward(const float* x, float* y, int n,
                                  const PwluPieces<float>& pieces) {
  const Padded padded(pieces);
  const Table knot(padded.knot), start(padded.start), slope(padded.slope),
      from(padded.from), to(padded.to);
  const __m512 left = _mm512_set1_ps(pieces.left),
               inverse = _mm512_set1_ps(pieces.inverse_length),
               last = _mm512_set1_ps(static_cast<float>(pieces.last));
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    const __m512i j = find(v, left, inverse, last, from, to);
    const __m512 line = _mm512_mul_ps(_mm512_sub_ps(v, knot[j]), slope[j]);
    _mm512_storeu_ps(y + i, _mm512_add_ps(line, start[j]));
  }
  return i;
}

// Adds a block's sums for pieces first to first + kBins - 1 to bins.
template <int kBins>
MM_ACON_AVX512 inline void add_to_bins(const int32_t* piece, const float* grad,
                                       const float* moment, int n, int first,
                                       int count, double* bins) {
  __m512 sums[kBins], moments[kBins];
  for (int b = 0; b < kBins; ++b) sums[b] = moments[b] = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __m512 g = _mm512_loadu_ps(grad + i);
    const __m512 m = _mm512_loadu_ps(moment + i);
    const __m512i j = _mm512_loadu_si512(piece + i);
#pragma GCC unroll 16
    for (int b = 0; b < kBins; ++b) {
      const __mmask16 here =
          _mm512_cmpeq_epi32_mask(j, _mm512_set1_epi32(first + b));
      sums[b] = _mm512_mask_add_ps(sums[b], here, sums[b], g);
      moments[b] = _mm512_mask_add_ps(moments[b], here, moments[b], m);
    }
  }
  for (int b = 0; b < kBins && first + b < count; ++b) {
    bins[first + b] += _mm512_reduce_add_ps(sums[b]);
    bins[count + first + b] += _mm512_reduce_add_ps(moments[b]);
  }
}

// piece and moment: room for n numbers each.
MM_ACON_AVX512 inline int backward(const float* grad, const float* x,
                                   float* dx, int n,
                                   const PwluPieces<float>& pieces,
                                   int32_t* piece, float* moment,
                                   double* bins) {
  const Padded padded(pieces);
  const Table knot(padded.knot), slope(padded.slope), from(padded.from),
      to(padded.to);
  const __m512 left = _mm512_set1_ps(pieces.left),
               inverse = _mm512_set1_ps(pieces.inverse_length),
               last = _mm512_set1_ps(static_cast<float>(pieces.last));
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 g = _mm512_loadu_ps(grad + i), v = _mm512_loadu_ps(x + i);
    const __m512i j = find(v, left, inverse, last, from, to);
    _mm512_storeu_ps(dx + i, _mm512_mul_ps(g, slope[j]));
    _mm512_storeu_ps(moment + i, _mm512_mul_ps(g, _mm512_sub_ps(v, knot[j])));
    _mm512_storeu_si512(piece + i, j);
  }
  // Comparing and adding whole registers, piece by piece, is faster than one
  // scattered addition per element. Nine pieces at a time fill the registers.
  constexpr int kBins = 9;
  const int count = pieces.last + 1;
  for (int first = 0; first < count; first += kBins) {
    add_to_bins<kBins>(piece, grad, moment, i, first, count, bins);
  }
  return i;
}

MM_ACON_AVX512 inline int table(const float* x, float* y, int n,
                                const float* slope_numbers,
                                const float* offset_numbers, float left,
                                float inverse_length, int last_piece) {
  float slopes[kMaxPieces], offsets[kMaxPieces];
  for (int j = 0; j < kMaxPieces; ++j) {
    const int k = j <= last_piece ? j : last_piece;
    slopes[j] = slope_numbers[k];
    offsets[j] = offset_numbers[k];
  }
  const Table slope(slopes), offset(offsets);
  const __m512 one = _mm512_set1_ps(1.f), zero = _mm512_setzero_ps(),
               from = _mm512_set1_ps(left),
               inverse = _mm512_set1_ps(inverse_length),
               last = _mm512_set1_ps(static_cast<float>(last_piece));
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    __m512 position =
        _mm512_add_ps(_mm512_mul_ps(_mm512_sub_ps(v, from), inverse), one);
    position = _mm512_min_ps(_mm512_max_ps(position, zero), last);
    const __m512i j = _mm512_cvttps_epi32(position);
    _mm512_storeu_ps(y + i,
                     _mm512_add_ps(_mm512_mul_ps(slope[j], v), offset[j]));
  }
  return i;
}

}  // namespace avx512
}  // namespace mm_acon

#endif
