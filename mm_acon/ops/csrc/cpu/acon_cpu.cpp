#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../acon_math.h"
#include "tiles.h"

namespace mm_acon {
namespace {

// beta is one number for the block, or one per element.
template <bool kElement, typename T>
MM_ACON_HD void forward_loop(const T* x, T* y, int n, T d, T p2,
                             const T* beta) {
  const T shared = beta[0];
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    y[i] = acon(x[i], d, p2, kElement ? beta[i] : shared);
  }
}

// dx, and for kAll what the parameters get: sums of g x G (for p1), g x, and
// g df/dbeta unless beta is per element.
template <bool kElement, bool kAll, typename T>
MM_ACON_HD void backward_loop(const T* grad, const T* x, T* dx, T* dbeta,
                              int n, T d, T p2, const T* beta, double* sums) {
  const T shared = beta[0];
  T to_p1 = 0, to_x = 0, to_beta = 0;
#pragma omp simd reduction(+ : to_p1, to_x, to_beta)
  for (int i = 0; i < n; ++i) {
    const AconSlopes<T> slope =
        acon_slopes(x[i], d, p2, kElement ? beta[i] : shared);
    dx[i] = grad[i] * slope.x;
    if constexpr (kAll) {
      to_p1 += grad[i] * slope.p1;
      to_x += grad[i] * x[i];
      if constexpr (kElement) {
        dbeta[i] = grad[i] * slope.beta;
      } else {
        to_beta += grad[i] * slope.beta;
      }
    }
  }
  if constexpr (kAll) {
    sums[0] += to_p1;
    sums[1] += to_x;
    sums[2] += to_beta;
  }
}

// A block of a row. dbeta is null but for a beta per element, sums is null
// where dx alone is asked for.
template <typename T>
struct Block {
  const T *grad, *x;
  T *out, *dbeta;  // y or dx
  int n;
  T d, p2;
  const T* beta;
  double* sums;
};

template <typename T>
MM_ACON_HD void forward_any(const Block<T>& b, bool per_element) {
  if (per_element) {
    forward_loop<true>(b.x, b.out, b.n, b.d, b.p2, b.beta);
  } else {
    forward_loop<false>(b.x, b.out, b.n, b.d, b.p2, b.beta);
  }
}

template <bool kElement, typename T>
MM_ACON_HD void backward_of(const Block<T>& b) {
  if (b.sums) {
    backward_loop<kElement, true>(b.grad, b.x, b.out, b.dbeta, b.n, b.d, b.p2,
                                  b.beta, b.sums);
  } else {
    backward_loop<kElement, false>(b.grad, b.x, b.out, b.dbeta, b.n, b.d, b.p2,
                                   b.beta, b.sums);
  }
}

template <typename T>
MM_ACON_HD void backward_any(const Block<T>& b, bool per_element) {
  if (per_element) {
    backward_of<true>(b);
  } else {
    backward_of<false>(b);
  }
}

MM_ACON_CLONES void forward_block(const Block<float>& b, bool per_element) {
  forward_any(b, per_element);
}
void forward_block(const Block<double>& b, bool per_element) {
  forward_any(b, per_element);
}
MM_ACON_CLONES void backward_block(const Block<float>& b, bool per_element) {
  backward_any(b, per_element);
}
void backward_block(const Block<double>& b, bool per_element) {
  backward_any(b, per_element);
}

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
  return as_gradient(sums.data(), parameter);
}

at::Tensor acon_cpu(const at::Tensor& input, const at::Tensor& p1,
                    const at::Tensor& p2, const at::Tensor& beta) {
  check_acon(input, p1, p2, beta);
  const Seen seen(input);
  if (input.numel() == 0) return seen.result();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "acon", [&] {
        using T = math_t<scalar_t>;
        const AconParameters<T> parameters(p1, p2, beta, seen);
        const AconView<T>& numbers = parameters.numbers;
        const bool per_element = parameters.kind == BetaKind::kElement;
        const Tiles<scalar_t> tiles(seen.view);
        const Steps from = seen.x.steps, to = seen.out.steps;
        const Steps of_beta = parameters.steps;
        const scalar_t* x_data = const_data<scalar_t>(seen.x.tensor);
        scalar_t* y_data = mutable_data<scalar_t>(seen.out.tensor);
        tiles.for_blocks([&](int64_t n, int64_t c, int64_t, int64_t p,
                             int length) {
          T x_buffer[kBlock], y_buffer[kBlock], b_buffer[kBlock];
          scalar_t* y_here = y_data + to.to(n, c, p);
          Block<T> block{};
          block.x =
              load(x_data + from.to(n, c, p), from.place, length, x_buffer);
          block.out = target(y_here, to.place, y_buffer);
          block.n = length;
          block.d = numbers.difference(c);
          block.p2 = numbers.low(c);
          block.beta = per_element ? load(numbers.beta + of_beta.to(n, c, p),
                                          of_beta.place, length, b_buffer)
                                   : numbers.beta_of(n, c);
          forward_block(block, per_element);
          store(block.out, y_here, to.place, length);
        });
      });
  return seen.result();
}

Gradients<4> acon_backward_cpu(const at::Tensor& grad_output,
                               const at::Tensor& input, const at::Tensor& p1,
                               const at::Tensor& p2, const at::Tensor& beta,
                               Asked<4> asked) {
  check_acon(input, p1, p2, beta);
  const Seen seen(input);
  const View& view = seen.view;
  const Array grad = seen.like(grad_output, "the gradient");
  at::Tensor dbeta;
  const bool all = asked[1] || asked[2] || asked[3];
  const bool per_element = beta_kind(beta, input) == BetaKind::kElement;
  // Of every sample and channel: the sums that give dp1, dp2 and dbeta.
  const int64_t rows = view.samples * view.channels;
  std::vector<double> to_p1(all ? rows : 0), to_p2(to_p1), to_beta(to_p1);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "acon_backward", [&] {
        using T = math_t<scalar_t>;
        const AconParameters<T> parameters(p1, p2, beta, seen);
        const AconView<T>& numbers = parameters.numbers;
        if (all && per_element) {
          dbeta =
              at::empty_like(seen.out.tensor, parameters.held[2].options());
        }
        if (input.numel() == 0) return;
        const Tiles<scalar_t> tiles(view);
        // Three sums per sample, channel and chunk of a row.
        std::vector<double> sums(all ? rows * tiles.chunks * 3 : 0);
        const Steps from = seen.x.steps, to = seen.out.steps;
        const Steps of_grad = grad.steps, of_beta = parameters.steps;
        const scalar_t* x_data = const_data<scalar_t>(seen.x.tensor);
        const scalar_t* g_data = const_data<scalar_t>(grad.tensor);
        scalar_t* dx_data = mutable_data<scalar_t>(seen.out.tensor);
        T* db_data = dbeta.defined() ? mutable_data<T>(dbeta) : nullptr;
        tiles.for_blocks([&](int64_t n, int64_t c, int64_t chunk, int64_t p,
                             int length) {
          T x_buffer[kBlock], g_buffer[kBlock], dx_buffer[kBlock];
          T b_buffer[kBlock], db_buffer[kBlock];
          const int64_t at = to.to(n, c, p);
          Block<T> block{};
          block.x =
              load(x_data + from.to(n, c, p), from.place, length, x_buffer);
          block.grad = load(g_data + of_grad.to(n, c, p), of_grad.place,
                            length, g_buffer);
          block.out = target(dx_data + at, to.place, dx_buffer);
          block.n = length;
          block.d = numbers.difference(c);
          block.p2 = numbers.low(c);
          block.beta = per_element ? load(numbers.beta + of_beta.to(n, c, p),
                                          of_beta.place, length, b_buffer)
                                   : numbers.beta_of(n, c);
          if (db_data) block.dbeta = target(db_data + at, to.place, db_buffer);
          if (all) {
            block.sums = sums.data() +
                         ((n * view.channels + c) * tiles.chunks + chunk) * 3;
          }
          backward_block(block, per_element);
          store(block.out, dx_data + at, to.place, length);
          if (db_data) store(block.dbeta, db_data + at, to.place, length);
        });
        for (int64_t row = 0; all && row < rows; ++row) {
          for (int64_t chunk = 0; chunk < tiles.chunks; ++chunk) {
            const double* sum = sums.data() + (row * tiles.chunks + chunk) * 3;
            to_p1[row] += sum[0];
            to_p2[row] += sum[1] - sum[0];
            to_beta[row] += sum[2];
          }
        }
      });
  Gradients<4> result;
  if (asked[0]) std::get<0>(result) = seen.result();
  if (asked[1]) std::get<1>(result) = reduced(to_p1, p1, view);
  if (asked[2]) std::get<2>(result) = reduced(to_p2, p2, view);
  if (asked[3]) {
    std::get<3>(result) = per_element
                              ? dbeta.to(beta.scalar_type()).view_as(beta)
                              : reduced(to_beta, beta, view);
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, CPU, m) {
  m.impl("acon", acon_cpu);
  m.impl("acon_backward", acon_backward_cpu);
}

}  // namespace mm_acon
