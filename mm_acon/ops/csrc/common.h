// What every kernel shares: how a tensor is seen, and host-and-device marks.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

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
  if (!view.channels_last) return grad.contiguous();
  return grad.contiguous(x.dim() == 4 ? at::MemoryFormat::ChannelsLast
                                      : at::MemoryFormat::ChannelsLast3d);
}

}  // namespace mm_acon
