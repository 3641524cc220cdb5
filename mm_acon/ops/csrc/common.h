// What every kernel shares: how a tensor is seen, and host-and-device marks.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "compat.h"

#if defined(__CUDACC__)
#define MM_ACON_HD __host__ __device__ __forceinline__
#else
#define MM_ACON_HD inline __attribute__((always_inline))
#endif

namespace mm_acon {

// Half and bfloat16 are computed in float.
template <typename scalar_t>
using math_t =
    std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// A tensor as (outer, channels, inner), stored in that order. channels_last
// memory is inner == 1 with the pixels in outer; `samples` still tells how
// many of the outer rows belong to one sample.
struct View {
  int64_t samples;
  int64_t channels;
  int64_t inner;
  bool channels_last;

  int64_t size() const { return samples * channels * inner; }
};

// What the backward operator of one with n tensors is asked for, and gives.
template <size_t n>
using Asked = std::array<bool, n>;

template <size_t n>  // std::tuple<at::Tensor, ...>
using Gradients =
    decltype(std::tuple_cat(std::declval<std::array<at::Tensor, n>>()));

// Checks keep an operator from reading outside of a tensor. Where one fails,
// the public Python functions say what to write instead.
inline void check_input(const at::Tensor& x) {
  TORCH_CHECK(x.dim() >= 2, "mm_acon: x is not (N, C, ...)");
  TORCH_CHECK(x.is_floating_point(), "mm_acon: x is ", x.scalar_type());
}

inline void check_parameter(const at::Tensor& x, const at::Tensor& parameter,
                            int64_t axes, const char* name) {
  TORCH_CHECK(parameter.dim() == axes &&
                  (parameter.size(0) == 1 || parameter.size(0) == x.size(1)),
              "mm_acon: ", name, " of shape ", parameter.sizes(),
              " does not fit x of shape ", x.sizes());
  TORCH_CHECK(parameter.device() == x.device(), "mm_acon: ", name, " is on ",
              parameter.device(), ", x on ", x.device());
}

// Contiguous, as T. Asked first, since even a conversion to what it is costs
// as much as a small kernel.
template <typename T>
at::Tensor as(const at::Tensor& parameter) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  return (parameter.scalar_type() == type ? parameter : parameter.to(type))
      .contiguous();
}

// x in a layout that a View describes: x itself where that is possible.
inline std::pair<at::Tensor, View> dense(const at::Tensor& x) {
  const int64_t samples = x.size(0), channels = x.size(1);
  const int64_t area = samples * channels;
  const int64_t inner = area == 0 ? 0 : x.numel() / area;
  if (!x.is_contiguous()) {
    const auto format = x.dim() == 4   ? at::MemoryFormat::ChannelsLast
                        : x.dim() == 5 ? at::MemoryFormat::ChannelsLast3d
                                       : at::MemoryFormat::Contiguous;
    if (format != at::MemoryFormat::Contiguous && x.is_contiguous(format)) {
      return {x, {samples, channels, inner, true}};
    }
  }
  return {x.contiguous(), {samples, channels, inner, false}};
}

// grad in the layout of x, which `dense` gave.
inline at::Tensor like(const at::Tensor& grad, const at::Tensor& x,
                       const View& view) {
  TORCH_CHECK(grad.sizes() == x.sizes() && grad.device() == x.device(),
              "mm_acon: the gradient has shape ", grad.sizes(), " on ",
              grad.device(), ", x ", x.sizes(), " on ", x.device());
  if (!view.channels_last) return grad.contiguous();
  return grad.contiguous(x.dim() == 4 ? at::MemoryFormat::ChannelsLast
                                      : at::MemoryFormat::ChannelsLast3d);
}

}  // namespace mm_acon
