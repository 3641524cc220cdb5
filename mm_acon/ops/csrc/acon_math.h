// ACON-C (arXiv 2009.04759, Eq. 4) and its derivatives, for CPU and CUDA.
#pragma once

#include "common.h"

namespace mm_acon {

// exp for float without branches or calls, so that a loop over it becomes
// vector code. Relative error below 2e-7; 0 below -87, infinity above 89.
MM_ACON_HD float fast_exp(float x) {
#if defined(__CUDA_ARCH__)
  return __expf(x);
#else
  x = x < -87.f ? -87.f : x;
  x = x > 89.f ? 89.f : x;
  // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
  const float magic = 12582912.f;
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.98756915e-4f;
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345190e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 5.00000012e-1f;
  p = p * r * r + r + 1.f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits + 127) << 23);
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
#endif
}

MM_ACON_HD double fast_exp(double x) { return std::exp(x); }

template <typename T>
MM_ACON_HD T sigmoid(T x) {
  return T(1) / (T(1) + fast_exp(-x));
}

// f(x) = d x s + p2 x with d = p1 - p2, s = sigmoid(beta d x).
template <typename T>
MM_ACON_HD T acon(T x, T d, T p2, T beta) {
  const T line = d * x;
  return line * sigmoid(beta * line) + p2 * x;
}

// Derivatives at one x. With y = beta d x and g = s + y s (1 - s):
// df/dx = p2 + d g, df/dp1 = x g, df/dp2 = x (1 - g), df/dbeta below.
template <typename T>
struct AconSlopes {
  T x;     // df/dx
  T p1;    // df/dp1
  T beta;  // df/dbeta = (d x)^2 s (1 - s)
};

template <typename T>
MM_ACON_HD AconSlopes<T> acon_slopes(T x, T d, T p2, T beta) {
  const T line = d * x;
  const T s = sigmoid(beta * line);
  const T bump = line * s * (T(1) - s);
  const T g = s + beta * bump;
  return {p2 + d * g, x * g, line * bump};
}

}  // namespace mm_acon
