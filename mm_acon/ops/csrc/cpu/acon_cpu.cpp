#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../acon_math.h"
#include "tiles.h"

namespace mm_acon {
namespace {

// What a line's elements share, or have one each of: along a row that may be
// beta, along the channels of a place it is every parameter.
enum class Line { kRow, kRowOfBetas, kChannels };

template <bool kEach, typename T>
MM_ACON_HD T number(const T* numbers, int i) {
  return numbers[kEach ? i : 0];
}

// A line of elements. dbeta is null but for a beta per element, sums is null
// where dx alone is asked for.
template <typename T>
struct Block {
  const T *grad, *x;
  T *out, *dbeta;  // y or dx
  int n;
  const T *d, *p2, *beta;
  // What the parameters get: sums of g x G (for p1), of g x, and of g df/dbeta
  // unless beta is per element; so far apart.
  double* sums;
  int64_t sums_step;
};

template <Line kLine, typename T>
MM_ACON_HD void forward_loop(const Block<T>& b) {
  constexpr bool kChannels = kLine == Line::kChannels;
  const T *x = b.x, *d = b.d, *p2 = b.p2, *beta = b.beta;
  T* y = b.out;
  const int n = b.n;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    y[i] = acon(x[i], number<kChannels>(d, i), number<kChannels>(p2, i),
                number<kLine != Line::kRow>(beta, i));
  }
}

template <Line kLine, typename T>
MM_ACON_HD void slope_loop(const Block<T>& b) {
  constexpr bool kChannels = kLine == Line::kChannels;
  const T *x = b.x, *d = b.d, *p2 = b.p2, *beta = b.beta, *grad = b.grad;
  T* dx = b.out;
  const int n = b.n;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    dx[i] = grad[i] * acon_slopes(x[i], number<kChannels>(d, i),
                                  number<kChannels>(p2, i),
                                  number<kLine != Line::kRow>(beta, i))
                          .x;
  }
}

template <bool kBetas, typename T>
MM_ACON_HD void row_loop(const Block<T>& b) {
  const T *x = b.x, *beta = b.beta, *grad = b.grad;
  const T d = *b.d, p2 = *b.p2, shared = *b.beta;
  T *dx = b.out, *dbeta = b.dbeta;
  const int n = b.n;
  T to_p1 = 0, to_x = 0, to_beta = 0;
#pragma omp simd reduction(+ : to_p1, to_x, to_beta)
  for (int i = 0; i < n; ++i) {
    const AconSlopes<T> slope =
        acon_slopes(x[i], d, p2, kBetas ? beta[i] : shared);
    dx[i] = grad[i] * slope.x;
    to_p1 += grad[i] * slope.p1;
    to_x += grad[i] * x[i];
    if constexpr (kBetas) {
      dbeta[i] = grad[i] * slope.beta;
    } else {
      to_beta += grad[i] * slope.beta;
    }
  }
  b.sums[0] += to_p1;
  b.sums[b.sums_step] += to_x;
  b.sums[2 * b.sums_step] += to_beta;
}

template <bool kBetas, typename T>
MM_ACON_HD void channel_loop(const Block<T>& b) {
  const T *x = b.x, *d = b.d, *p2 = b.p2, *beta = b.beta, *grad = b.grad;
  T *dx = b.out, *dbeta = b.dbeta;
  double *to_p1 = b.sums, *to_x = to_p1 + b.sums_step;
  double* to_beta = to_x + b.sums_step;
  const int n = b.n;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const AconSlopes<T> slope = acon_slopes(x[i], d[i], p2[i], beta[i]);
    dx[i] = grad[i] * slope.x;
    to_p1[i] += grad[i] * slope.p1;
    to_x[i] += grad[i] * x[i];
    if constexpr (kBetas) {
      dbeta[i] = grad[i] * slope.beta;
    } else {
      to_beta[i] += grad[i] * slope.beta;
    }
  }
}

template <typename T>
MM_ACON_HD void forward_any(const Block<T>& b, Line line) {
  if (line == Line::kRow) return forward_loop<Line::kRow>(b);
  if (line == Line::kRowOfBetas) return forward_loop<Line::kRowOfBetas>(b);
  forward_loop<Line::kChannels>(b);
}

template <typename T>
MM_ACON_HD void backward_any(const Block<T>& b, Line line) {
  if (!b.sums) {
    if (line == Line::kRow) return slope_loop<Line::kRow>(b);
    if (line == Line::kRowOfBetas) return slope_loop<Line::kRowOfBetas>(b);
    return slope_loop<Line::kChannels>(b);
  }
  if (line == Line::kChannels) {
    return b.dbeta ? channel_loop<true>(b) : channel_loop<false>(b);
  }
  b.dbeta ? row_loop<true>(b) : row_loop<false>(b);
}

MM_ACON_CLONES void forward_block(const Block<float>& b, Line line) {
  forward_any(b, line);
}
void forward_block(const Block<double>& b, Line line) { forward_any(b, line); }
MM_ACON_CLONES void backward_block(const Block<float>& b, Line line) {
  backward_any(b, line);
}
void backward_block(const Block<double>& b, Line line) {
  backward_any(b, line);
}

// p1 - p2, p2 and beta of every channel, one after the other, since the
// channels of a place are a line, too.
template <typename T>
class Numbers {
 public:
  Numbers(const AconParameters<T>& parameters, const View& view)
      : samples_(parameters.kind == BetaKind::kSample ? view.samples : 1),
        channels_(view.channels),
        numbers_((samples_ + 2) * channels_) {
    const AconView<T>& from = parameters.numbers;
    for (int64_t c = 0; c < channels_; ++c) {
      numbers_[c] = from.difference(c);
      numbers_[channels_ + c] = from.low(c);
    }
    if (parameters.kind == BetaKind::kElement) return;
    for (int64_t n = 0; n < samples_; ++n) {
      T* betas = numbers_.data() + (n + 2) * channels_;
      for (int64_t c = 0; c < channels_; ++c) betas[c] = *from.beta_of(n, c);
    }
  }

  // Of the channels from a patch's first on. beta is not that of an element.
  void find(const Patch& patch, Block<T>* block) const {
    block->d = numbers_.data() + patch.channel;
    block->p2 = block->d + channels_;
    block->beta =
        block->p2 + (samples_ == 1 ? 1 : patch.sample + 1) * channels_;
  }

 private:
  int64_t samples_, channels_;
  std::vector<T> numbers_;
};

Line line_of(const View& view, bool per_element) {
  if (view.channels_last) return Line::kChannels;
  return per_element ? Line::kRowOfBetas : Line::kRow;
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
        const Numbers<T> numbers(parameters, seen.view);
        const bool per_element = parameters.kind == BetaKind::kElement;
        const Line kind = line_of(seen.view, per_element);
        const Tiles<scalar_t> tiles(seen.view, kBlock);
        const Steps from = seen.x.steps, to = seen.out.steps;
        const Steps of_beta = parameters.steps;
        const scalar_t* x_data = const_data<scalar_t>(seen.x.tensor);
        scalar_t* y_data = mutable_data<scalar_t>(seen.out.tensor);
        tiles.for_lines([&](const Patch& line) {
          const Input<scalar_t> x(x_data, from, line);
          Output<scalar_t> y(y_data, to, line);
          const Input<T> betas(per_element ? parameters.numbers.beta : nullptr,
                               of_beta, line);
          Block<T> block{};
          block.n = line.length;
          block.x = x[0];
          block.out = y[0];
          numbers.find(line, &block);
          if (per_element) block.beta = betas[0];
          forward_block(block, kind);
          y.store(to, line);
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
        if (all && per_element) {
          dbeta =
              at::empty_like(seen.out.tensor, parameters.held[2].options());
        }
        if (input.numel() == 0) return;
        const Numbers<T> numbers(parameters, view);
        const Line kind = line_of(view, per_element);
        const Tiles<scalar_t> tiles(view, kBlock);
        // Three sums per chunk of a row, sample and channel.
        std::vector<double> sums(all ? tiles.chunks * 3 * rows : 0);
        const Steps from = seen.x.steps, to = seen.out.steps;
        const Steps of_grad = grad.steps, of_beta = parameters.steps;
        const scalar_t* x_data = const_data<scalar_t>(seen.x.tensor);
        const scalar_t* g_data = const_data<scalar_t>(grad.tensor);
        scalar_t* dx_data = mutable_data<scalar_t>(seen.out.tensor);
        T* db_data = dbeta.defined() ? mutable_data<T>(dbeta) : nullptr;
        tiles.for_lines([&](const Patch& line) {
          const Input<scalar_t> x(x_data, from, line);
          const Input<scalar_t> g(g_data, of_grad, line);
          Output<scalar_t> dx(dx_data, to, line);
          const Input<T> betas(per_element ? parameters.numbers.beta : nullptr,
                               of_beta, line);
          Output<T> dbetas(db_data, to, line);
          Block<T> block{};
          block.n = line.length;
          block.x = x[0];
          block.grad = g[0];
          block.out = dx[0];
          numbers.find(line, &block);
          if (per_element) block.beta = betas[0];
          if (db_data) block.dbeta = dbetas[0];
          if (all) {
            block.sums = sums.data() + line.chunk * 3 * rows +
                         line.sample * view.channels + line.channel;
            block.sums_step = rows;
          }
          backward_block(block, kind);
          dx.store(to, line);
          if (db_data) dbetas.store(to, line);
        });
        for (int64_t chunk = 0; all && chunk < tiles.chunks; ++chunk) {
          const double* sum = sums.data() + chunk * 3 * rows;
          for (int64_t row = 0; row < rows; ++row) {
            to_p1[row] += sum[row];
            to_p2[row] += sum[rows + row] - sum[row];
            to_beta[row] += sum[2 * rows + row];
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
