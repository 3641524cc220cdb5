// Registers of AVX-512 for pwlu_vector.h: a table of up to 32 numbers lies in
// two of them, so that looking a number up is one permutation instead of a
// gather from memory.
#pragma once

#include "tiles.h"

#if defined(MM_ACON_HAS_INTRINSICS)
#include "../pwlu_math.h"
#include "pwlu_sums.h"

// GCC before 13 warns of registers that its own intrinsics leave undefined on
// purpose, wherever they are inlined.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)  // It has no warning of that name.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace mm_acon {
namespace avx512 {

#define MM_ACON_TARGET __attribute__((target("avx512f")))

constexpr int kLanes = 16, kMaxPieces = 32;
using Floats = __m512;
using Ints = __m512i;
using Halves = __m256i;

inline bool available() {
  static const bool found =
      __builtin_cpu_supports("avx512f") && !processor_is({"default", "avx2"});
  return found;
}

MM_ACON_TARGET inline Floats all(float x) { return _mm512_set1_ps(x); }
// Give their second operand for NaN, as those of AVX2 do.
MM_ACON_TARGET inline Floats larger(Floats a, Floats b) {
  return _mm512_max_ps(a, b);
}
MM_ACON_TARGET inline Floats smaller(Floats a, Floats b) {
  return _mm512_min_ps(a, b);
}
MM_ACON_TARGET inline Ints truncated(Floats x) {
  return _mm512_cvttps_epi32(x);
}
// j, or j + 1 where a >= b.
MM_ACON_TARGET inline Ints one_more_where(Floats a, Floats b, Ints j) {
  return _mm512_mask_add_epi32(j, _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), j,
                               _mm512_set1_epi32(1));
}

inline __mmask16 lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
MM_ACON_TARGET inline Floats load(const float* from) {
  return _mm512_loadu_ps(from);
}
MM_ACON_TARGET inline Floats load_some(const float* from, int n) {
  return _mm512_maskz_loadu_ps(lanes(n), from);
}
MM_ACON_TARGET inline void store(float* to, Floats x) {
  _mm512_storeu_ps(to, x);
}
MM_ACON_TARGET inline void store_some(float* to, Floats x, int n) {
  _mm512_mask_storeu_ps(to, lanes(n), x);
}
MM_ACON_TARGET inline void store(int32_t* to, Ints j) {
  _mm512_storeu_si512(to, j);
}

MM_ACON_TARGET inline Floats load(const at::BFloat16* from) {
  const Halves bits =
      _mm256_loadu_si256(reinterpret_cast<const Halves*>(from));
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
MM_ACON_TARGET inline void store(at::BFloat16* to, Floats x) {
  const Ints bits = _mm512_castps_si512(x);
  const Ints odd =
      _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const Ints even = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)),
      16);
  const Ints rounded = _mm512_mask_mov_epi32(
      even, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<Halves*>(to),
                      _mm512_cvtepi32_epi16(rounded));
}
MM_ACON_TARGET inline Floats load(const at::Half* from) {
  return _mm512_cvtph_ps(
      _mm256_loadu_si256(reinterpret_cast<const Halves*>(from)));
}
MM_ACON_TARGET inline void store(at::Half* to, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<Halves*>(to),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// a0, b0, a1, b1, ...
MM_ACON_TARGET inline void store_pairs(float* to, Floats a, Floats b) {
  const Ints low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21,
                                     6, 22, 7, 23);
  const Ints high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                      29, 14, 30, 15, 31);
  store(to, _mm512_permutex2var_ps(a, low, b));
  store(to + kLanes, _mm512_permutex2var_ps(a, high, b));
}

struct Table {
  Floats parts[2];

  MM_ACON_TARGET __attribute__((always_inline)) Table(const float* numbers,
                                                      int count) {
    for (int i = 0; i < 2; ++i) {
      const int here = std::min(std::max(count - kLanes * i, 0), kLanes);
      parts[i] = load_some(numbers + kLanes * i, here);
    }
  }

  MM_ACON_TARGET Floats operator[](Ints index) const {
    return _mm512_permutex2var_ps(parts[0], index, parts[1]);
  }
};

// to[j][i] = from[i][j] for 16x16 numbers whose rows lie so far apart.
template <typename From, typename To>
MM_ACON_TARGET inline void turn(const From* from, int64_t from_step, To* to,
                                int64_t to_step) {
  Floats a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = load(from + i * from_step);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  // a[i + j] holds columns j, 4 + j, 8 + j and 12 + j of rows i to i + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d low0 = _mm512_castps_pd(b[i]);
    const __m512d low1 = _mm512_castps_pd(b[i + 2]);
    const __m512d high0 = _mm512_castps_pd(b[i + 1]);
    const __m512d high1 = _mm512_castps_pd(b[i + 3]);
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low0, low1));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low0, low1));
    a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high0, high1));
    a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high0, high1));
  }
  constexpr int kEven = 0x88, kOdd = 0xdd;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Floats even0 = _mm512_shuffle_f32x4(a[j], a[4 + j], kEven);
    const Floats even1 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], kEven);
    const Floats odd0 = _mm512_shuffle_f32x4(a[j], a[4 + j], kOdd);
    const Floats odd1 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], kOdd);
    store(to + j * to_step, _mm512_shuffle_f32x4(even0, even1, kEven));
    store(to + (4 + j) * to_step, _mm512_shuffle_f32x4(odd0, odd1, kEven));
    store(to + (8 + j) * to_step, _mm512_shuffle_f32x4(even0, even1, kOdd));
    store(to + (12 + j) * to_step, _mm512_shuffle_f32x4(odd0, odd1, kOdd));
  }
}

#include "pwlu_vector.h"
#undef MM_ACON_TARGET

}  // namespace avx512
}  // namespace mm_acon

#pragma GCC diagnostic pop

#endif
