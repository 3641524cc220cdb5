// PWLU on blocks of floats with AVX-512: the table of up to 32 pieces lies in
// two registers, so that looking a number up is one permutation instead of a
// gather from memory.
#pragma once

#include "tiles.h"

#if defined(MM_ACON_HAS_INTRINSICS)
#include <immintrin.h>

#include "../pwlu_math.h"

// GCC before 13 warns of registers that its own intrinsics leave undefined on
// purpose, wherever they are inlined.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace mm_acon {
namespace avx512 {

#define MM_ACON_AVX512 __attribute__((target("avx512f")))

constexpr int kMaxPieces = 32;

inline bool available() {
  static const bool found =
      __builtin_cpu_supports("avx512f") && !processor_is({"default", "avx2"});
  return found;
}

struct Table {
  __m512 low, high;

  // The first `count` numbers; `rest` stands behind them.
  MM_ACON_AVX512 Table(const float* numbers, int count, float rest = 0.f) {
    const uint64_t mask = (uint64_t(1) << count) - 1;
    const __m512 fill = _mm512_set1_ps(rest);
    low = _mm512_mask_loadu_ps(fill, static_cast<__mmask16>(mask), numbers);
    high = _mm512_mask_loadu_ps(fill, static_cast<__mmask16>(mask >> 16),
                                numbers + 16);
  }

  MM_ACON_AVX512 __m512 operator[](__m512i index) const {
    return _mm512_permutex2var_ps(low, index, high);
  }
};

// Finds pieces by the same steps as PwluTable<float>::find.
struct Finder {
  Table next;
  __m512 left, inverse, last;

  MM_ACON_AVX512 explicit Finder(const PwluTable<float>& table)
      :  // Where the next piece starts. No comparison with NaN holds, so that
         // nothing lies right of the last one.
        next(table.numbers + 1, table.last,
             std::numeric_limits<float>::quiet_NaN()),
        left(_mm512_set1_ps(table.left)),
        inverse(_mm512_set1_ps(table.inverse_length)),
        last(_mm512_set1_ps(static_cast<float>(table.last))) {}

  MM_ACON_AVX512 __m512i operator()(__m512 x) const {
    __m512 position = _mm512_add_ps(
        _mm512_mul_ps(_mm512_sub_ps(x, left), inverse), _mm512_set1_ps(.5f));
    // max gives its second operand for NaN.
    position = _mm512_max_ps(position, _mm512_setzero_ps());
    position = _mm512_min_ps(position, last);
    const __m512i j = _mm512_cvttps_epi32(position);
    return _mm512_mask_add_epi32(j, _mm512_cmp_ps_mask(x, next[j], _CMP_GE_OQ),
                                 j, _mm512_set1_epi32(1));
  }
};

// The first n lanes, of which a register has 16 at most. Masked loads and
// stores are for the end of a row alone: where the memory is in no cache they
// cost twice as much as ordinary ones.
inline __mmask16 lanes(int n) {
  return n >= 16 ? 0xffff : static_cast<__mmask16>((1 << n) - 1);
}

MM_ACON_AVX512 inline __m512 load(const float* from, int n) {
  return n >= 16 ? _mm512_loadu_ps(from)
                 : _mm512_maskz_loadu_ps(lanes(n), from);
}

MM_ACON_AVX512 inline void store(float* to, __m512 value, int n) {
  if (n >= 16) {
    _mm512_storeu_ps(to, value);
  } else {
    _mm512_mask_storeu_ps(to, lanes(n), value);
  }
}

MM_ACON_AVX512 inline void forward(const float* x, float* y, int n,
                                   const PwluTable<float>& table) {
  const int count = table.last + 1;
  const Finder find(table);
  const Table knot(table.numbers, count),
      slope(table.numbers + table.kind_step, count),
      start(table.numbers + 2 * table.kind_step, count);
  for (int i = 0; i < n; i += 16) {
    const __m512 v = load(x + i, n - i);
    const __m512i j = find(v);
    const __m512 line = _mm512_mul_ps(_mm512_sub_ps(v, knot[j]), slope[j]);
    store(y + i, _mm512_add_ps(line, start[j]), n - i);
  }
}

MM_ACON_AVX512 inline void slopes(const float* grad, const float* x, float* dx,
                                  int n, const PwluTable<float>& table) {
  const Finder find(table);
  const Table slope(table.numbers + table.kind_step, table.last + 1);
  for (int i = 0; i < n; i += 16) {
    const __m512i j = find(load(x + i, n - i));
    store(dx + i, _mm512_mul_ps(load(grad + i, n - i), slope[j]), n - i);
  }
}

// Adds up the gradients and moments of the pieces first to first + kBins - 1,
// lane by lane. Fetches what `next` points to, since memory would idle.
template <int kBins>
MM_ACON_AVX512 inline void add_to_bins(const int32_t* piece, const float* grad,
                                       const float* moment, int n, int first,
                                       __m512* sums, __m512* moments,
                                       const float* next) {
  __m512 s[kBins], m[kBins];
  for (int b = 0; b < kBins; ++b) s[b] = sums[first + b];
  for (int b = 0; b < kBins; ++b) m[b] = moments[first + b];
  const __m512 one = _mm512_set1_ps(1.f);
  for (int i = 0; i < n; i += 16) {
    const __m512 to_sum = load(grad + i, n - i);
    const __m512 to_moment = _mm512_loadu_ps(moment + i);
    const __m512i j = _mm512_loadu_si512(piece + i);
    __builtin_prefetch(next + i);
#pragma GCC unroll 16
    for (int b = 0; b < kBins; ++b) {
      const __mmask16 here =
          _mm512_cmpeq_epi32_mask(j, _mm512_set1_epi32(first + b));
      s[b] = _mm512_mask_add_ps(s[b], here, s[b], to_sum);
      // An addition too, for the units that additions leave idle.
      m[b] = _mm512_mask3_fmadd_ps(to_moment, one, m[b], here);
    }
  }
  for (int b = 0; b < kBins; ++b) sums[first + b] = s[b];
  for (int b = 0; b < kBins; ++b) moments[first + b] = m[b];
}

// bins: for every piece the sum of g, then for every piece that of
// g (x - knot).
MM_ACON_AVX512 inline void backward(const float* grad, const float* x,
                                    float* dx, int n,
                                    const PwluTable<float>& table,
                                    float* bins) {
  // Comparing and adding whole registers, piece by piece, is faster than one
  // scattered addition per element. Nine pieces at a time fill the registers.
  constexpr int kBins = 9, kStep = 512;
  const int count = table.last + 1;
  const Finder find(table);
  const Table knot(table.numbers, count),
      slope(table.numbers + table.kind_step, count);
  __m512 sums[kMaxPieces + kBins], moments[kMaxPieces + kBins];
  for (int j = 0; j < count + kBins; ++j) {
    sums[j] = moments[j] = _mm512_setzero_ps();
  }
  int32_t piece[kStep];
  float moment[kStep];
  for (int at = 0; at < n; at += kStep) {
    const int step = n - at < kStep ? n - at : kStep;
    for (int i = 0; i < step; i += 16) {
      const __m512 g = load(grad + at + i, step - i);
      const __m512 v = load(x + at + i, step - i);
      const __m512i j = find(v);
      store(dx + at + i, _mm512_mul_ps(g, slope[j]), step - i);
      _mm512_storeu_ps(moment + i,
                       _mm512_mul_ps(g, _mm512_sub_ps(v, knot[j])));
      // Lanes behind the end belong to no piece.
      _mm512_storeu_si512(
          piece + i,
          _mm512_mask_mov_epi32(_mm512_set1_epi32(-1), lanes(step - i), j));
    }
    for (int first = 0; first < count; first += kBins) {
      add_to_bins<kBins>(piece, grad + at, moment, step, first, sums, moments,
                         (first == 0 ? x : grad) + at + kStep);
    }
  }
  for (int j = 0; j < count; ++j) {
    bins[j] += _mm512_reduce_add_ps(sums[j]);
    bins[count + j] += _mm512_reduce_add_ps(moments[j]);
  }
}

}  // namespace avx512
}  // namespace mm_acon

#pragma GCC diagnostic pop

#endif
