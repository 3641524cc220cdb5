// ACON-C (arXiv 2009.04759, Eq. 4) and its derivatives, for CPU and CUDA.
#pragma once

#include "common.h"

namespace mm_acon {

// beta of shape (C,) or (1,); of (N, C) or (N, 1); of x's shape.
enum class BetaKind { kUnit, kSample, kElement };

inline BetaKind beta_kind(const at::Tensor& beta, const at::Tensor& x) {
  if (beta.dim() == 1) return BetaKind::kUnit;
  return beta.sizes() == x.sizes() ? BetaKind::kElement : BetaKind::kSample;
}

void check_acon(const at::Tensor& x, const at::Tensor& p1,
                const at::Tensor& p2, const at::Tensor& beta);

// p1, p2 and beta with the steps that find a row's numbers.
template <typename T>
struct AconView {
  const T *p1, *p2, *beta;
  int64_t p1_step, p2_step, sample_step, channel_step;

  MM_ACON_HD T low(int64_t channel) const { return p2[channel * p2_step]; }
  MM_ACON_HD T difference(int64_t channel) const {
    return p1[channel * p1_step] - low(channel);
  }
  // Not where beta is one number per element.
  MM_ACON_HD const T* beta_of(int64_t sample, int64_t channel) const {
    return beta + sample * sample_step + channel * channel_step;
  }
};

// Holds what an AconView points to: the parameters as T, contiguous, and a
// beta per element seen as x is.
template <typename T>
struct AconParameters {
  AconParameters(const at::Tensor& p1, const at::Tensor& p2,
                 const at::Tensor& beta, const Seen& seen)
      : kind(beta_kind(beta, seen.x.tensor)) {
    held[0] = as<T>(p1);
    held[1] = as<T>(p2);
    if (kind == BetaKind::kElement) {
      const Array found =
          seen.like(beta.to(c10::CppTypeToScalarType<T>::value), "beta");
      held[2] = found.tensor;
      steps = found.steps;
    } else {
      held[2] = as<T>(beta);
    }
    numbers = {const_data<T>(held[0]),
               const_data<T>(held[1]),
               const_data<T>(held[2]),
               p1.size(0) == 1 ? 0 : 1,
               p2.size(0) == 1 ? 0 : 1,
               kind == BetaKind::kSample ? beta.size(1) : 0,
               beta.size(-1) == 1 ? 0 : 1};
  }

  BetaKind kind;
  at::Tensor held[3];
  Steps steps{};  // of a beta per element
  AconView<T> numbers;
};

// -126 and 128, which stand in acon.cpp: where GCC knows them, it follows them
// through the rest of the function by masks, which takes a fifth more time
// than a maximum and a minimum.
extern const float kLeastPower, kMostPower;

// 2^x for float without branches or calls, so that a loop over it becomes
// vector code. Relative error below 1e-7 (a minimax polynomial of degree 6);
// 2^-126 below -126, infinity above 128.
MM_ACON_HD float exp2_fast(float x) {
#if defined(__CUDA_ARCH__)
  // One instruction, relative error 2^-22; exp2f also scales denormals.
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
#else
  const float least = kLeastPower, most = kMostPower;
  x = x < least ? least : x;
  x = x > most ? most : x;
  // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits;
  // the 127 is the exponent's bias.
  const float magic = 12582912.f + 127.f;
  const float shifted = x + magic;
  const float f = x - (shifted - magic);
  float p = 1.5594678e-4f;
  p = p * f + 1.3406643e-3f;
  p = p * f + 9.617693e-3f;
  p = p * f + 5.5503104e-2f;
  p = p * f + 2.4022652e-1f;
  p = p * f + 6.9314724e-1f;
  p = p * f + 1.f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
#endif
}

MM_ACON_HD double exp2_fast(double x) { return std::exp2(x); }

// a / b for b >= 1. On a GPU a division rounded exactly would cost as much as
// the rest of the function.
MM_ACON_HD float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(b) : "f"(b));
  return a * b;
#else
  return a / b;
#endif
}

MM_ACON_HD double quotient(double a, double b) { return a / b; }

// 1 + exp(-z) with z = beta d x, of which the sigmoid is the inverse. What
// depends on the unit alone stands in brackets: loops compute it once.
template <typename T>
MM_ACON_HD T sigmoid_inverse(T x, T d, T beta) {
  constexpr double kLog2E = 1.4426950408889634;
  return T(1) + exp2_fast((-beta * d * T(kLog2E)) * x);
}

// f(x) = d x s + p2 x with d = p1 - p2, s = sigmoid(beta d x).
template <typename T>
MM_ACON_HD T acon(T x, T d, T p2, T beta) {
  return x * (quotient(d, sigmoid_inverse(x, d, beta)) + p2);
}

// Derivatives at one x. With z = beta d x and g = s + z s (1 - s):
// df/dx = p2 + d g, df/dp1 = x g, df/dp2 = x (1 - g), df/dbeta below.
template <typename T>
struct AconSlopes {
  T x;     // df/dx
  T p1;    // df/dp1
  T beta;  // df/dbeta = (d x)^2 s (1 - s)
};

template <typename T>
MM_ACON_HD AconSlopes<T> acon_slopes(T x, T d, T p2, T beta) {
  const T s = quotient(T(1), sigmoid_inverse(x, d, beta));
  const T bump = x * (s - s * s);
  const T g = s + (beta * d) * bump;
  return {p2 + d * g, x * g, (d * d) * (x * bump)};
}

}  // namespace mm_acon
