// What every kernel shares: how a tensor is seen, and host-and-device marks.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>

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

// A tensor as (samples, channels, inner): rows of `inner` places that lie one
// after the other in memory, or, channels_last, places whose channels do.
struct View {
  int64_t samples;
  int64_t channels;
  int64_t inner;
  bool channels_last;

  int64_t size() const { return samples * channels * inner; }
};

// How far apart the samples, channels and places of an array are.
struct Steps {
  int64_t sample, channel, place;

  MM_ACON_HD int64_t to(int64_t n, int64_t c, int64_t p) const {
    return n * sample + c * channel + p * place;
  }
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

// A tensor, and where its elements lie.
struct Array {
  at::Tensor tensor;
  Steps steps;
};

// An input, and an output like it, as one View: as they lie in memory where
// samples, channels and places each have one step, as slices of channels and
// every order of axes have in which either the places or the channels are
// neighbours. Else x is a contiguous copy.
class Seen {
 public:
  explicit Seen(const at::Tensor& input, bool with_output = true)
      : input_(input) {
    copied_ = !fits(input, with_output);
    if (!copied_) return;
    TORCH_INTERNAL_ASSERT(fits(input.contiguous(), with_output));
  }

  // Another tensor of x's shape: itself if it can be seen like x, else a copy.
  Array like(const at::Tensor& other, const char* name) const {
    TORCH_CHECK(
        other.sizes() == input_.sizes() && other.device() == input_.device(),
        "mm_acon: ", name, " has shape ", other.sizes(), " on ",
        other.device(), ", x ", input_.sizes(), " on ", input_.device());
    Array found{other, {}};
    if (!steps_of(other, &found.steps)) {
      found.tensor = at::empty_like(out.tensor, other.options()).copy_(other);
      found.steps = out.steps;
    }
    return found;
  }

  // An output in the layout that PyTorch gives one of x's.
  at::Tensor result(const at::Tensor& output) const {
    if (!copied_) return output;
    at::Tensor found = at::empty_like(input_, output.options());
    return found.strides() == output.strides() ? output : found.copy_(output);
  }
  at::Tensor result() const { return result(out.tensor); }

  View view;
  Array x, out;

 private:
  bool fits(const at::Tensor& tensor, bool with_output) {
    x.tensor = tensor;
    if (!look()) return false;
    if (!with_output) return true;
    out.tensor = at::empty_like(tensor);
    return steps_of(out.tensor, &out.steps);
  }

  // Chooses the view for x.
  bool look() {
    const at::Tensor& t = x.tensor;
    const int64_t area = t.size(0) * t.size(1);
    view = {t.size(0), t.size(1), area == 0 ? 0 : t.numel() / area, false};
    axes_.clear();
    for (int64_t axis = 2; axis < t.dim(); ++axis) {
      if (t.size(axis) != 1) axes_.push_back(axis);
    }
    // Outermost in memory first.
    std::sort(axes_.begin(), axes_.end(),
              [&](int64_t a, int64_t b) { return t.stride(a) > t.stride(b); });
    if (steps_of(t, &x.steps)) return true;
    view.channels_last = true;
    return steps_of(t, &x.steps);
  }

  bool steps_of(const at::Tensor& t, Steps* steps) const {
    if (t.numel() == 0) {
      *steps = {0, 0, 1};
      return true;
    }
    for (int64_t axis = 0; axis < t.dim(); ++axis) {
      if (t.stride(axis) == 0 && t.size(axis) != 1) return false;
    }
    for (size_t i = 1; i < axes_.size(); ++i) {
      if (t.stride(axes_[i - 1]) != t.stride(axes_[i]) * t.size(axes_[i])) {
        return false;
      }
    }
    *steps = {t.stride(0), t.stride(1),
              axes_.empty() ? 1 : t.stride(axes_.back())};
    // Kernels count the steps between places in an int.
    if (steps->place > std::numeric_limits<int>::max()) return false;
    return view.channels_last ? steps->channel == 1 || view.channels == 1
                              : steps->place == 1;
  }

  at::Tensor input_;
  bool copied_;
  c10::SmallVector<int64_t, 8> axes_;
};

}  // namespace mm_acon
