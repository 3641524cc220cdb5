#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../acon_math.h"
#include "tiles.h"

namespace mm_acon {
namespace {

// beta is one number for the block, or one per element.
template <bool kPixel, typename T>
MM_ACON_HD void forward_loop(const T* x, T* y, int n, T d, T p2,
                             const T* beta) {
  const T shared = beta[0];
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    y[i] = acon(x[i], d, p2, kPixel ? beta[i] : shared);
  }
}

// sums: of g x G (for p1), g x, and g df/dbeta unless beta is per element.
template <bool kPixel, typename T>
MM_ACON_HD void backward_loop(const T* grad, const T* x, T* dx, T* dbeta,
                              int n, T d, T p2, const T* beta, double* sums) {
  const T shared = beta[0];
  T to_p1 = 0, to_x = 0, to_beta = 0;
#pragma omp simd reduction(+ : to_p1, to_x, to_beta)
  for (int i = 0; i < n; ++i) {
    const AconSlopes<T> slope =
        acon_slopes(x[i], d, p2, kPixel ? beta[i] : shared);
    dx[i] = grad[i] * slope.x;
    to_p1 += grad[i] * slope.p1;
    to_x += grad[i] * x[i];
    if constexpr (kPixel) {
      dbeta[i] = grad[i] * slope.beta;
    } else {
      to_beta += grad[i] * slope.beta;
    }
  }
  sums[0] += to_p1;
  sums[1] += to_x;
  sums[2] += to_beta;
}

MM_ACON_CLONES void forward_block(const float* x, float* y, int n, float d,
                                  float p2, const float* beta) {
  forward_loop<false>(x, y, n, d, p2, beta);
}
MM_ACON_CLONES void forward_block_pixel(const float* x, float* y, int n,
                                        float d, float p2, const float* beta) {
  forward_loop<true>(x, y, n, d, p2, beta);
}
void forward_block(const double* x, double* y, int n, double d, double p2,
                   const double* beta) {
  forward_loop<false>(x, y, n, d, p2, beta);
}
void forward_block_pixel(const double* x, double* y, int n, double d,
                         double p2, const double* beta) {
  forward_loop<true>(x, y, n, d, p2, beta);
}
MM_ACON_CLONES void backward_block(const float* grad, const float* x,
                                   float* dx, int n, float d, float p2,
                                   const float* beta, double* sums) {
  backward_loop<false>(grad, x, dx, dx, n, d, p2, beta, sums);
}
MM_ACON_CLONES void backward_block_pixel(const float* grad, const float* x,
                                         float* dx, float* dbeta, int n,
                                         float d, float p2, const float* beta,
                                         double* sums) {
  backward_loop<true>(grad, x, dx, dbeta, n, d, p2, beta, sums);
}
void backward_block(const double* grad, const double* x, double* dx, int n,
                    double d, double p2, const double* beta, double* sums) {
  backward_loop<false>(grad, x, dx, dx, n, d, p2, beta, sums);
}
void backward_block_pixel(const double* grad, const double* x, double* dx,
                          double* dbeta, int n, double d, double p2,
                          const double* beta, double* sums) {
  backward_loop<true>(grad, x, dx, dbeta, n, d, p2, beta, sums);
}

// p1, p2 and beta as math_t, with the strides that find a row's numbers.
template <typename T>
struct Parameters {
  Parameters(const at::Tensor& p1, const at::Tensor& p2,
             const at::Tensor& beta, const at::Tensor& x)
      : per_element(beta.dim() > 2 || (x.dim() == 2 && beta.dim() == 2 &&
                                       beta.sizes() == x.sizes())) {
    const auto type = c10::CppTypeToScalarType<T>::value;
    p1_ = p1.to(type).contiguous();
    p2_ = p2.to(type).contiguous();
    p1_stride = p1.size(0) == 1 ? 0 : 1;
    p2_stride = p2.size(0) == 1 ? 0 : 1;
    if (per_element) return;
    beta_ = beta.to(type).contiguous();
    sample_stride = beta.dim() == 2 ? beta.size(1) : 0;
    channel_stride = beta.size(-1) == 1 ? 0 : 1;
  }

  T p1(int64_t c) const { return const_data<T>(p1_)[c * p1_stride]; }
  T p2(int64_t c) const { return const_data<T>(p2_)[c * p2_stride]; }
  const T* beta(int64_t n, int64_t c) const {
    return const_data<T>(beta_) + n * sample_stride + c * channel_stride;
  }

  bool per_element;
  at::Tensor p1_, p2_, beta_;
  int64_t p1_stride, p2_stride, sample_stride = 0, channel_stride = 0;
};

// Sums of every sample and channel, brought to the shape of a parameter:
// (C), (1), (N, C) or (N, 1).
at::Tensor reduced(const std::vector<double>& rows,
                   const at::Tensor& parameter, const View& view) {
  const bool per_sample = parameter.dim() == 2;
  const int64_t width = parameter.size(-1);
  std::vector<double> sums(parameter.numel());
  for (int64_t n = 0; n < view.samples; ++n) {
    double* to = sums.data() + (per_sample ? n * width : 0);
    const double* from = rows.data() + n * view.channels;
    for (int64_t c = 0; c < view.channels; ++c) {
      to[width == 1 ? 0 : c] += from[c];
    }
  }
  at::Tensor result = at::empty(parameter.sizes(), at::kDouble);
  std::copy(sums.begin(), sums.end(), mutable_data<double>(result));
  return result.to(parameter.scalar_type());
}

at::Tensor acon_cpu(const at::Tensor& input, const at::Tensor& p1,
                    const at::Tensor& p2, const at::Tensor& beta) {
  check_acon(input, p1, p2, beta);
  at::Tensor x;
  View view;
  std::tie(x, view) = dense(input);
  at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "acon", [&] {
        using T = math_t<scalar_t>;
        const Parameters<T> parameters(p1, p2, beta, x);
        const Tiles<scalar_t> tiles(view);
        const int64_t stride = tiles.stride();
        // In the dtype of the arithmetic, which beta may have where x is half.
        const at::Tensor b =
            parameters.per_element
                ? like(beta.to(c10::CppTypeToScalarType<T>::value), x, view)
                : parameters.beta_;
        const scalar_t* x_data = const_data<scalar_t>(x);
        const T* b_data = const_data<T>(b);
        scalar_t* y_data = mutable_data<scalar_t>(y);
        tiles.for_blocks([&](int64_t n, int64_t c, int64_t, int64_t p,
                             int length) {
          T x_buffer[kBlock], y_buffer[kBlock], b_buffer[kBlock];
          const int64_t at = tiles.offset(n, c, p);
          const T* from = load(x_data + at, stride, length, x_buffer);
          T* to = target(y_data + at, stride, y_buffer);
          const T p2_here = parameters.p2(c), d = parameters.p1(c) - p2_here;
          if (parameters.per_element) {
            forward_block_pixel(from, to, length, d, p2_here,
                                load(b_data + at, stride, length, b_buffer));
          } else {
            forward_block(from, to, length, d, p2_here, parameters.beta(n, c));
          }
          store(to, y_data + at, stride, length);
        });
      });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> acon_backward_cpu(
    const at::Tensor& grad_output, const at::Tensor& input,
    const at::Tensor& p1, const at::Tensor& p2, const at::Tensor& beta) {
  check_acon(input, p1, p2, beta);
  at::Tensor x;
  View view;
  std::tie(x, view) = dense(input);
  const at::Tensor grad = like(grad_output, x, view);
  at::Tensor dx = at::empty_like(x), dbeta;
  // Of every sample and channel: the sums that give dp1, dp2 and dbeta.
  const int64_t rows = view.samples * view.channels;
  std::vector<double> to_p1(rows), to_p2(rows), to_beta(rows);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "acon_backward", [&] {
        using T = math_t<scalar_t>;
        const Parameters<T> parameters(p1, p2, beta, x);
        if (parameters.per_element) {
          dbeta = at::empty_like(
              x, x.options().dtype(c10::CppTypeToScalarType<T>::value));
        }
        if (x.numel() == 0) return;
        const Tiles<scalar_t> tiles(view);
        // Three sums per sample, channel and chunk of a row.
        std::vector<double> sums(rows * tiles.chunks * 3);
        const int64_t stride = tiles.stride();
        // In the dtype of the arithmetic, which beta may have where x is half.
        const at::Tensor b =
            parameters.per_element
                ? like(beta.to(c10::CppTypeToScalarType<T>::value), x, view)
                : parameters.beta_;
        const scalar_t* x_data = const_data<scalar_t>(x);
        const scalar_t* g_data = const_data<scalar_t>(grad);
        const T* b_data = const_data<T>(b);
        scalar_t* dx_data = mutable_data<scalar_t>(dx);
        T* db_data = parameters.per_element ? mutable_data<T>(dbeta) : nullptr;
        tiles.for_blocks([&](int64_t n, int64_t c, int64_t chunk, int64_t p,
                             int length) {
          T x_buffer[kBlock], g_buffer[kBlock], dx_buffer[kBlock];
          T b_buffer[kBlock], db_buffer[kBlock];
          const int64_t at = tiles.offset(n, c, p);
          const T* from = load(x_data + at, stride, length, x_buffer);
          const T* g = load(g_data + at, stride, length, g_buffer);
          T* to = target(dx_data + at, stride, dx_buffer);
          const T p2_here = parameters.p2(c), d = parameters.p1(c) - p2_here;
          double* row = sums.data() +
                        ((n * view.channels + c) * tiles.chunks + chunk) * 3;
          if (parameters.per_element) {
            T* to_beta = target(db_data + at, stride, db_buffer);
            backward_block_pixel(g, from, to, to_beta, length, d, p2_here,
                                 load(b_data + at, stride, length, b_buffer),
                                 row);
            store(to_beta, db_data + at, stride, length);
          } else {
            backward_block(g, from, to, length, d, p2_here,
                           parameters.beta(n, c), row);
          }
          store(to, dx_data + at, stride, length);
        });
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t chunk = 0; chunk < tiles.chunks; ++chunk) {
            const double* sum = sums.data() + (row * tiles.chunks + chunk) * 3;
            to_p1[row] += sum[0];
            to_p2[row] += sum[1] - sum[0];
            to_beta[row] += sum[2];
          }
        }
      });
  return {dx, reduced(to_p1, p1, view), reduced(to_p2, p2, view),
          dbeta.defined() ? dbeta.to(beta.scalar_type()).view_as(beta)
                          : reduced(to_beta, beta, view)};
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, CPU, m) {
  m.impl("acon", acon_cpu);
  m.impl("acon_backward", acon_backward_cpu);
}

}  // namespace mm_acon
