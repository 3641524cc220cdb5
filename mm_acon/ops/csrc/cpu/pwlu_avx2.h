// PWLU on blocks of floats with AVX2, where there is no AVX-512: the table of
// up to 24 pieces lies in three registers, so that looking a number up is
// three permutations instead of a gather from memory.
#pragma once

#include "tiles.h"

#if defined(MM_ACON_HAS_INTRINSICS)
#include "../pwlu_math.h"

namespace mm_acon {
namespace avx2 {

#define MM_ACON_AVX2 __attribute__((target("avx2")))

constexpr int kMaxPieces = 24;

inline bool available() {
  static const bool found =
      __builtin_cpu_supports("avx2") && !processor_is({"default"});
  return found;
}

// The first n lanes, of which a register has 8 at most; masked for the end of
// a row alone.
MM_ACON_AVX2 inline __m256i lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

struct Table {
  __m256 parts[3];

  MM_ACON_AVX2 Table(const float* numbers, int count) {
    for (int i = 0; i < 3; ++i) {
      parts[i] = _mm256_maskload_ps(numbers + 8 * i, lanes(count - 8 * i));
    }
  }

  // A permutation goes by the lowest three bits, a blend by the highest one.
  MM_ACON_AVX2 __m256 operator[](__m256i index) const {
    const __m256 from8 = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    const __m256 from16 = _mm256_castsi256_ps(_mm256_slli_epi32(index, 27));
    const __m256 low =
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(parts[0], index),
                         _mm256_permutevar8x32_ps(parts[1], index), from8);
    return _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(parts[2], index),
                            from16);
  }
};

// Finds pieces by the same steps as PwluTable<float>::find.
struct Finder {
  Table next;
  __m256 left, inverse, last;

  MM_ACON_AVX2 explicit Finder(const PwluTable<float>& table)
      :  // Where the next piece starts. No comparison with NaN holds, so that
         // nothing lies right of the last one.
        next(table.numbers + 1, table.last + 1),
        left(_mm256_set1_ps(table.left)),
        inverse(_mm256_set1_ps(table.inverse_length)),
        last(_mm256_set1_ps(static_cast<float>(table.last))) {}

  MM_ACON_AVX2 __m256i operator()(__m256 x) const {
    __m256 position = _mm256_add_ps(
        _mm256_mul_ps(_mm256_sub_ps(x, left), inverse), _mm256_set1_ps(.5f));
    // max gives its second operand for NaN.
    position = _mm256_max_ps(position, _mm256_setzero_ps());
    position = _mm256_min_ps(position, last);
    const __m256i j = _mm256_cvttps_epi32(position);
    // What holds is -1.
    return _mm256_sub_epi32(
        j, _mm256_castps_si256(_mm256_cmp_ps(x, next[j], _CMP_GE_OQ)));
  }
};

MM_ACON_AVX2 inline __m256 load(const float* from, int n) {
  return n >= 8 ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, lanes(n));
}

MM_ACON_AVX2 inline void store(float* to, __m256 value, int n) {
  if (n >= 8) {
    _mm256_storeu_ps(to, value);
  } else {
    _mm256_maskstore_ps(to, lanes(n), value);
  }
}

MM_ACON_AVX2 inline void forward(const float* x, float* y, int n,
                                 const PwluTable<float>& table) {
  const int count = table.last + 1;
  const Finder find(table);
  const Table knot(table.numbers, count),
      slope(table.numbers + table.kind_step, count),
      start(table.numbers + 2 * table.kind_step, count);
  for (int i = 0; i < n; i += 8) {
    const __m256 v = load(x + i, n - i);
    const __m256i j = find(v);
    const __m256 line = _mm256_mul_ps(_mm256_sub_ps(v, knot[j]), slope[j]);
    store(y + i, _mm256_add_ps(line, start[j]), n - i);
  }
}

MM_ACON_AVX2 inline void slopes(const float* grad, const float* x, float* dx,
                                int n, const PwluTable<float>& table) {
  const Finder find(table);
  const Table slope(table.numbers + table.kind_step, table.last + 1);
  for (int i = 0; i < n; i += 8) {
    const __m256i j = find(load(x + i, n - i));
    store(dx + i, _mm256_mul_ps(load(grad + i, n - i), slope[j]), n - i);
  }
}

// Of whole registers alone; returns how many elements that were. Writes dx,
// and every element's piece and pair of numbers (g, g (x - knot)).
MM_ACON_AVX2 inline int backward(const float* grad, const float* x, float* dx,
                                 int n, const PwluTable<float>& table,
                                 int32_t* piece, float* pairs) {
  const int count = table.last + 1;
  const Finder find(table);
  const Table knot(table.numbers, count),
      slope(table.numbers + table.kind_step, count);
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 g = _mm256_loadu_ps(grad + i), v = _mm256_loadu_ps(x + i);
    const __m256i j = find(v);
    _mm256_storeu_ps(dx + i, _mm256_mul_ps(g, slope[j]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(piece + i), j);
    const __m256 moment = _mm256_mul_ps(g, _mm256_sub_ps(v, knot[j]));
    const __m256 low = _mm256_unpacklo_ps(g, moment);
    const __m256 high = _mm256_unpackhi_ps(g, moment);
    _mm256_storeu_ps(pairs + 2 * i, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(pairs + 2 * i + 8,
                     _mm256_permute2f128_ps(low, high, 0x31));
  }
  return i;
}

}  // namespace avx2
}  // namespace mm_acon

#endif
