// Registers of AVX2 for pwlu_vector.h, where there is no AVX-512: a table of
// up to 24 numbers lies in three of them, so that looking a number up is three
// permutations instead of a gather from memory.
#pragma once

#include "tiles.h"

#if defined(MM_ACON_HAS_INTRINSICS)
#include "../pwlu_math.h"
#include "pwlu_sums.h"

namespace mm_acon {
namespace avx2 {

#define MM_ACON_TARGET __attribute__((target("avx2,f16c")))

constexpr int kLanes = 8, kMaxPieces = 24;
using Floats = __m256;
using Ints = __m256i;
using Halves = __m128i;

inline bool available() {
  // What has AVX2 has F16C.
  static const bool found =
      __builtin_cpu_supports("avx2") && !processor_is({"default"});
  return found;
}

MM_ACON_TARGET inline Floats all(float x) { return _mm256_set1_ps(x); }
// Give their second operand for NaN, as those of AVX-512 do.
MM_ACON_TARGET inline Floats larger(Floats a, Floats b) {
  return _mm256_max_ps(a, b);
}
MM_ACON_TARGET inline Floats smaller(Floats a, Floats b) {
  return _mm256_min_ps(a, b);
}
MM_ACON_TARGET inline Ints truncated(Floats x) {
  return _mm256_cvttps_epi32(x);
}
// j, or j + 1 where a >= b: what holds is -1.
MM_ACON_TARGET inline Ints one_more_where(Floats a, Floats b, Ints j) {
  return _mm256_sub_epi32(
      j, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}

MM_ACON_TARGET inline Ints lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MM_ACON_TARGET inline Floats load(const float* from) {
  return _mm256_loadu_ps(from);
}
MM_ACON_TARGET inline Floats load_some(const float* from, int n) {
  return _mm256_maskload_ps(from, lanes(n));
}
MM_ACON_TARGET inline void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x);
}
MM_ACON_TARGET inline void store_some(float* to, Floats x, int n) {
  _mm256_maskstore_ps(to, lanes(n), x);
}
MM_ACON_TARGET inline void store(int32_t* to, Ints j) {
  _mm256_storeu_si256(reinterpret_cast<Ints*>(to), j);
}

MM_ACON_TARGET inline Floats load(const at::BFloat16* from) {
  const Halves bits = _mm_loadu_si128(reinterpret_cast<const Halves*>(from));
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
MM_ACON_TARGET inline void store(at::BFloat16* to, Floats x) {
  const Ints bits = _mm256_castps_si256(x);
  const Ints odd =
      _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const Ints even = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)),
      16);
  const Ints rounded = _mm256_blendv_epi8(
      even, _mm256_set1_epi32(0x7fc0),
      _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  // Packs the halves of a register side by side.
  const Ints packed =
      _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
  _mm_storeu_si128(reinterpret_cast<Halves*>(to),
                   _mm256_castsi256_si128(packed));
}
MM_ACON_TARGET inline Floats load(const at::Half* from) {
  return _mm256_cvtph_ps(
      _mm_loadu_si128(reinterpret_cast<const Halves*>(from)));
}
MM_ACON_TARGET inline void store(at::Half* to, Floats x) {
  _mm_storeu_si128(reinterpret_cast<Halves*>(to),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

// a0, b0, a1, b1, ...
MM_ACON_TARGET inline void store_pairs(float* to, Floats a, Floats b) {
  const Floats low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
  store(to, _mm256_permute2f128_ps(low, high, 0x20));
  store(to + kLanes, _mm256_permute2f128_ps(low, high, 0x31));
}

struct Table {
  Floats parts[3];

  MM_ACON_TARGET __attribute__((always_inline)) Table(const float* numbers,
                                                      int count) {
    for (int i = 0; i < 3; ++i) {
      parts[i] = load_some(numbers + kLanes * i, count - kLanes * i);
    }
  }

  // A permutation goes by the lowest three bits, a blend by the highest one.
  MM_ACON_TARGET Floats operator[](Ints index) const {
    const Floats from8 = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    const Floats from16 = _mm256_castsi256_ps(_mm256_slli_epi32(index, 27));
    const Floats low =
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(parts[0], index),
                         _mm256_permutevar8x32_ps(parts[1], index), from8);
    return _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(parts[2], index),
                            from16);
  }
};

// to[j][i] = from[i][j] for 8x8 numbers whose rows lie so far apart.
template <typename From, typename To>
MM_ACON_TARGET inline void turn(const From* from, int64_t from_step, To* to,
                                int64_t to_step) {
  Floats a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = load(from + i * from_step);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  // a[i + j] holds columns j and 4 + j of rows i to i + 3.
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    store(to + j * to_step, _mm256_permute2f128_ps(a[j], a[4 + j], 0x20));
    store(to + (4 + j) * to_step,
          _mm256_permute2f128_ps(a[j], a[4 + j], 0x31));
  }
}

#include "pwlu_vector.h"
#undef MM_ACON_TARGET

}  // namespace avx2
}  // namespace mm_acon

#endif
