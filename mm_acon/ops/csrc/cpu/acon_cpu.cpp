#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../acon_math.h"
#include "tiles.h"

namespace mm_acon {
namespace {

// What the elements of a row share, or have one each of: along a row of places
// that may be beta, along the channels of a place it is every parameter.
enum class Line { kRow, kRowOfBetas, kChannels };

// A number that is each element's own or all of theirs, read before the loop.
template <bool kEach, typename T>
struct Number {
  const T* each;
  T shared;

  MM_ACON_HD explicit Number(const T* numbers)
      : each(numbers), shared(*numbers) {}
  MM_ACON_HD T operator[](int i) const { return kEach ? each[i] : shared; }
};

// An array's numbers, and how far apart its rows are.
template <typename S>
struct Rows {
  S* data;
  int64_t step;

  MM_ACON_HD S* operator[](int row) const { return data + row * step; }
};

// `rows` rows of n elements; S is math_t, or half or bfloat16, which are
// converted on the way. dbeta is null but for a beta per element, sums is null
// where dx alone is asked for.
template <typename S, typename T = math_t<S>>
struct Block {
  int rows, n;
  Rows<const S> grad, x;
  Rows<S> out;  // y or dx
  Rows<const T> beta;
  Rows<T> dbeta;
  const T *d, *p2;
  // What the parameters get: sums of g x G (for p1), of g x, and of g df/dbeta
  // unless beta is per element; so far apart.
  double* sums;
  int64_t sums_step;
};

template <Line kLine, typename S>
MM_ACON_HD void forward_loop(const Block<S>& b, int row) {
  constexpr bool kChannels = kLine == Line::kChannels;
  const S* x = b.x[row];
  S* y = b.out[row];
  const Number<kChannels, math_t<S>> d(b.d), p2(b.p2);
  const Number<kLine != Line::kRow, math_t<S>> beta(b.beta[row]);
  const int n = b.n;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    y[i] = narrowed<S>(acon(widened(x[i]), d[i], p2[i], beta[i]));
  }
}

template <Line kLine, typename S>
MM_ACON_HD void slope_loop(const Block<S>& b, int row) {
  constexpr bool kChannels = kLine == Line::kChannels;
  const S *x = b.x[row], *grad = b.grad[row];
  S* dx = b.out[row];
  const Number<kChannels, math_t<S>> d(b.d), p2(b.p2);
  const Number<kLine != Line::kRow, math_t<S>> beta(b.beta[row]);
  const int n = b.n;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    dx[i] = narrowed<S>(widened(grad[i]) *
                        acon_slopes(widened(x[i]), d[i], p2[i], beta[i]).x);
  }
}

// A row of places, with sums over it.
template <bool kBetas, typename S, typename T = math_t<S>>
MM_ACON_HD void row_loop(const Block<S>& b) {
  const S *x = b.x[0], *grad = b.grad[0];
  S* dx = b.out[0];
  const T d = *b.d, p2 = *b.p2;
  const Number<kBetas, T> beta(b.beta[0]);
  // GCC 9 does not see what only one case of an if constexpr uses.
  [[maybe_unused]] T* dbeta = b.dbeta[0];
  const int n = b.n;
  T to_p1 = 0, to_x = 0, to_beta = 0;
#pragma omp simd reduction(+ : to_p1, to_x, to_beta)
  for (int i = 0; i < n; ++i) {
    const T v = widened(x[i]), g = widened(grad[i]);
    const AconSlopes<T> slope = acon_slopes(v, d, p2, beta[i]);
    dx[i] = narrowed<S>(g * slope.x);
    to_p1 += g * slope.p1;
    to_x += g * v;
    if constexpr (kBetas) {
      dbeta[i] = g * slope.beta;
    } else {
      to_beta += g * slope.beta;
    }
  }
  b.sums[0] += to_p1;
  b.sums[b.sums_step] += to_x;
  b.sums[2 * b.sums_step] += to_beta;
}

// A row of channels, with sums for each of them.
template <bool kBetas, typename S, typename T = math_t<S>>
MM_ACON_HD void channel_loop(const Block<S>& b, int row, T* to_p1, T* to_x,
                             T* to_beta) {
  const S *x = b.x[row], *grad = b.grad[row];
  S* dx = b.out[row];
  const T *beta = b.beta[row], *d = b.d, *p2 = b.p2;
  [[maybe_unused]] T* dbeta = b.dbeta[row];
  const int n = b.n;
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const T v = widened(x[i]), g = widened(grad[i]);
    const AconSlopes<T> slope = acon_slopes(v, d[i], p2[i], beta[i]);
    dx[i] = narrowed<S>(g * slope.x);
    to_p1[i] += g * slope.p1;
    to_x[i] += g * v;
    if constexpr (kBetas) {
      dbeta[i] = g * slope.beta;
    } else {
      to_beta[i] += g * slope.beta;
    }
  }
}

template <bool kBetas, typename S, typename T = math_t<S>>
MM_ACON_HD void channels_loop(const Block<S>& b) {
  alignas(kCacheLine) T sums[3][kWidth];
  for (int row = 0; row < b.rows; row += kRowsAtOnce) {
    for (auto& kind : sums) std::fill(kind, kind + b.n, T(0));
    const int end = std::min(row + kRowsAtOnce, b.rows);
    for (int r = row; r < end; ++r) {
      channel_loop<kBetas>(b, r, sums[0], sums[1], sums[2]);
    }
    for (int kind = 0; kind < 3; ++kind) {
      double* to = b.sums + kind * b.sums_step;
      for (int i = 0; i < b.n; ++i) to[i] += sums[kind][i];
    }
  }
}

template <typename S>
MM_ACON_CLONES void forward(const Block<S>& b, Line line) {
  if (line == Line::kRow) return forward_loop<Line::kRow>(b, 0);
  if (line == Line::kRowOfBetas) return forward_loop<Line::kRowOfBetas>(b, 0);
  for (int r = 0; r < b.rows; ++r) forward_loop<Line::kChannels>(b, r);
}

template <typename S>
MM_ACON_CLONES void slopes(const Block<S>& b, Line line) {
  if (line == Line::kRow) return slope_loop<Line::kRow>(b, 0);
  if (line == Line::kRowOfBetas) return slope_loop<Line::kRowOfBetas>(b, 0);
  for (int r = 0; r < b.rows; ++r) slope_loop<Line::kChannels>(b, r);
}

template <bool kBetas, typename S>
MM_ACON_CLONES void backward(const Block<S>& b, Line line) {
  line == Line::kChannels ? channels_loop<kBetas>(b) : row_loop<kBetas>(b);
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
  template <typename S>
  void find(const Patch& patch, Block<S>* block) const {
    block->d = numbers_.data() + patch.channel;
    block->p2 = block->d + channels_;
    block->beta = {
        block->p2 + (samples_ == 1 ? 1 : patch.sample + 1) * channels_, 0};
  }

 private:
  int64_t samples_, channels_;
  std::vector<T> numbers_;
};

Line line_of(const View& view, bool per_element) {
  if (view.channels_last) return Line::kChannels;
  return per_element ? Line::kRowOfBetas : Line::kRow;
}

// A patch as rows: one of places, or of the channels of every place.
template <typename S>
Block<S> block_of(const Patch& patch) {
  Block<S> block{};
  block.rows = patch.channels_last ? patch.length : 1;
  block.n = patch.channels_last ? patch.rows : patch.length;
  return block;
}
template <typename S>
Rows<S> rows_of(S* data, const Steps& steps, const Patch& patch) {
  return {data + patch.in(steps), steps.place};
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
        const Tiles tiles(seen.view, kWidth);
        const Steps from = seen.x.steps, to = seen.out.steps;
        const scalar_t* x = const_data<scalar_t>(seen.x.tensor);
        scalar_t* y = mutable_data<scalar_t>(seen.out.tensor);
        tiles.for_patches([&](const Patch& patch) {
          auto block = block_of<scalar_t>(patch);
          block.x = rows_of(x, from, patch);
          block.out = rows_of(y, to, patch);
          numbers.find(patch, &block);
          if (per_element) {
            block.beta =
                rows_of(parameters.numbers.beta, parameters.steps, patch);
          }
          forward(block, kind);
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
        const Tiles tiles(view, kWidth);
        // Three sums per chunk of a row, sample and channel.
        std::vector<double> sums(all ? tiles.chunks * 3 * rows : 0);
        const Steps from = seen.x.steps, to = seen.out.steps;
        const scalar_t* x = const_data<scalar_t>(seen.x.tensor);
        const scalar_t* g = const_data<scalar_t>(grad.tensor);
        scalar_t* dx = mutable_data<scalar_t>(seen.out.tensor);
        T* db = dbeta.defined() ? mutable_data<T>(dbeta) : nullptr;
        tiles.for_patches([&](const Patch& patch) {
          auto block = block_of<scalar_t>(patch);
          block.x = rows_of(x, from, patch);
          block.grad = rows_of(g, grad.steps, patch);
          block.out = rows_of(dx, to, patch);
          numbers.find(patch, &block);
          if (per_element) {
            block.beta =
                rows_of(parameters.numbers.beta, parameters.steps, patch);
          }
          if (!all) return slopes(block, kind);
          block.sums = sums.data() + patch.chunk * 3 * rows +
                       patch.sample * view.channels + patch.channel;
          block.sums_step = rows;
          if (!db) return backward<false>(block, kind);
          block.dbeta = rows_of(db, to, patch);
          backward<true>(block, kind);
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
