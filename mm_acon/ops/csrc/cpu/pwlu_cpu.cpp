#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../pwlu_math.h"
#include "pwlu_avx512.h"
#include "tiles.h"

namespace mm_acon {
namespace {

template <typename T>
MM_ACON_HD void forward_loop(const T* x, T* y, int n, PwluPieces<T> pieces) {
#pragma omp simd
  for (int i = 0; i < n; ++i) y[i] = pieces.value(x[i], pieces.find(x[i]));
}

// Writes dx, and for add_to_bins every element's piece and its pair of
// numbers (g, g (x - knot)).
template <typename T>
MM_ACON_HD void backward_loop(const T* grad, const T* x, T* dx, int n,
                              PwluPieces<T> pieces, int32_t* piece, T* pairs) {
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const int j = pieces.find(x[i]);
    piece[i] = j;
    dx[i] = grad[i] * pieces.slope[j];
    pairs[2 * i] = grad[i];
    pairs[2 * i + 1] = grad[i] * (x[i] - pieces.knot[j]);
  }
}

// bins: for every piece the sum of g, then for every piece that of
// g (x - knot). Both are added at once, as one register, to one of several
// copies of the bins, so that no addition waits for the one before.
template <typename T>
void add_to_bins(const int32_t* piece, const T* pairs, int n, int count,
                 T* bins) {
  typedef T Pair __attribute__((vector_size(2 * sizeof(T))));
  constexpr int kCopies = 8, kMaxPieces = 64;
  if (count > kMaxPieces) {
    for (int i = 0; i < n; ++i) {
      bins[piece[i]] += pairs[2 * i];
      bins[count + piece[i]] += pairs[2 * i + 1];
    }
    return;
  }
  Pair copies[kCopies][kMaxPieces];
  for (auto& copy : copies) std::fill(copy, copy + count, Pair{});
  const auto add = [&](int copy, int i) {
    Pair pair;
    std::memcpy(&pair, pairs + 2 * i, sizeof(pair));
    copies[copy][piece[i]] += pair;
  };
  int i = 0;
  for (; i + kCopies <= n; i += kCopies) {
    for (int copy = 0; copy < kCopies; ++copy) add(copy, i + copy);
  }
  for (; i < n; ++i) add(i % kCopies, i);
  for (int j = 0; j < count; ++j) {
    Pair sum = copies[0][j];
    for (int copy = 1; copy < kCopies; ++copy) sum += copies[copy][j];
    bins[j] += sum[0];
    bins[count + j] += sum[1];
  }
}

MM_ACON_CLONES void forward_any(const float* x, float* y, int n,
                                PwluPieces<float> pieces) {
  forward_loop(x, y, n, pieces);
}
MM_ACON_CLONES void backward_any(const float* grad, const float* x, float* dx,
                                 int n, PwluPieces<float> pieces,
                                 int32_t* piece, float* pairs) {
  backward_loop(grad, x, dx, n, pieces, piece, pairs);
}
#if defined(MM_ACON_HAS_AVX512_PATH)
bool fits_registers(int last) {
  return last < avx512::kMaxPieces && avx512::available();
}
#endif

void forward_block(const float* x, float* y, int n,
                   const PwluPieces<float>& pieces) {
#if defined(MM_ACON_HAS_AVX512_PATH)
  if (fits_registers(pieces.last)) return avx512::forward(x, y, n, pieces);
#endif
  forward_any(x, y, n, pieces);
}
void forward_block(const double* x, double* y, int n,
                   const PwluPieces<double>& pieces) {
  forward_loop(x, y, n, pieces);
}
template <typename T, typename Loop>
void backward_by_blocks(const T* grad, const T* x, T* dx, int n,
                        const PwluPieces<T>& pieces, T* bins,
                        const Loop& loop) {
  int32_t piece[kBlock];
  T pairs[2 * kBlock];
  for (int i = 0; i < n; i += kBlock) {
    const int length = std::min(kBlock, n - i);
    loop(grad + i, x + i, dx + i, length, pieces, piece, pairs);
    add_to_bins(piece, pairs, length, pieces.last + 1, bins);
  }
}

void backward_block(const float* grad, const float* x, float* dx, int n,
                    const PwluPieces<float>& pieces, float* bins) {
#if defined(MM_ACON_HAS_AVX512_PATH)
  if (fits_registers(pieces.last)) {
    return avx512::backward(grad, x, dx, n, pieces, bins);
  }
#endif
  backward_by_blocks(grad, x, dx, n, pieces, bins, backward_any);
}
void backward_block(const double* grad, const double* x, double* dx, int n,
                    const PwluPieces<double>& pieces, double* bins) {
  backward_by_blocks(grad, x, dx, n, pieces, bins, backward_loop<double>);
}
// The parameters as T. Units are channels that have numbers of their own, or
// all channels as one.
template <typename T>
struct Parameters {
  Parameters(const at::Tensor& points, const at::Tensor& left_bound,
             const at::Tensor& right_bound, const at::Tensor& left_slope,
             const at::Tensor& right_slope)
      : intervals(static_cast<int>(points.size(1) - 1)) {
    const at::Tensor* given[] = {&points, &left_bound, &right_bound,
                                 &left_slope, &right_slope};
    for (int i = 0; i < 5; ++i) {
      held[i] = given[i]->to(c10::CppTypeToScalarType<T>::value).contiguous();
      units = std::max(units, held[i].size(0));
      data[i] = const_data<T>(held[i]);
    }
  }

  T number(int i, int64_t unit) const {
    return data[i][held[i].size(0) == 1 ? 0 : unit];
  }

  bool clamped(int64_t unit) const {
    return number(2, unit) - number(1, unit) < T(kMinWidth);
  }

  // The tables of PwluPieces, one row per unit.
  std::vector<T> tables() const {
    const int64_t size = PwluPieces<T>::table_size(intervals);
    std::vector<T> result(units * size);
    for (int64_t u = 0; u < units; ++u) {
      const int64_t row = held[0].size(0) == 1 ? 0 : u;
      PwluPieces<T>::fill(data[0] + row * (intervals + 1), number(1, u),
                          number(2, u), number(3, u), number(4, u), intervals,
                          result.data() + u * size);
    }
    return result;
  }

  int intervals;
  int64_t units = 1;
  at::Tensor held[5];
  const T* data[5];
};

at::Tensor pwlu_cpu(const at::Tensor& input, const at::Tensor& points,
                    const at::Tensor& left_bound,
                    const at::Tensor& right_bound,
                    const at::Tensor& left_slope,
                    const at::Tensor& right_slope) {
  check_pwlu(input, points, left_bound, right_bound, left_slope, right_slope);
  at::Tensor x;
  View view;
  std::tie(x, view) = dense(input);
  at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "pwlu", [&] {
        using T = math_t<scalar_t>;
        const Parameters<T> parameters(points, left_bound, right_bound,
                                       left_slope, right_slope);
        const int intervals = parameters.intervals;
        const std::vector<T> tables = parameters.tables();
        const int64_t row =
            parameters.units == 1 ? 0 : PwluPieces<T>::table_size(intervals);
        const Tiles<scalar_t> tiles(view);
        const int64_t stride = tiles.stride();
        const scalar_t* x_data = const_data<scalar_t>(x);
        scalar_t* y_data = mutable_data<scalar_t>(y);
        tiles.for_blocks(
            [&](int64_t n, int64_t c, int64_t, int64_t p, int length) {
              T x_buffer[kBlock], y_buffer[kBlock];
              const int64_t at = tiles.offset(n, c, p);
              const T* from = load(x_data + at, stride, length, x_buffer);
              T* to = target(y_data + at, stride, y_buffer);
              forward_block(from, to, length,
                            PwluPieces<T>(tables.data() + c * row, intervals));
              store(to, y_data + at, stride, length);
            });
      });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor>
pwlu_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                  const at::Tensor& points, const at::Tensor& left_bound,
                  const at::Tensor& right_bound, const at::Tensor& left_slope,
                  const at::Tensor& right_slope) {
  check_pwlu(input, points, left_bound, right_bound, left_slope, right_slope);
  at::Tensor x;
  View view;
  std::tie(x, view) = dense(input);
  const at::Tensor grad = like(grad_output, x, view);
  at::Tensor dx = at::empty_like(x), gradients;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "pwlu_backward", [&] {
        using T = math_t<scalar_t>;
        const Parameters<T> parameters(points, left_bound, right_bound,
                                       left_slope, right_slope);
        const int intervals = parameters.intervals;
        const int64_t units = parameters.units, bins = 2 * (intervals + 2);
        const Tiles<scalar_t> tiles(view);
        const int64_t rows = view.samples * tiles.chunks;
        const at::Tensor sums = at::empty({view.channels, rows, bins},
                                          c10::CppTypeToScalarType<T>::value);
        T* sums_data = mutable_data<T>(sums);
        const std::vector<T> tables = parameters.tables();
        const int64_t table_size = PwluPieces<T>::table_size(intervals);
        if (x.numel() != 0) {
          const int64_t row = units == 1 ? 0 : table_size;
          const int64_t stride = tiles.stride();
          const scalar_t* x_data = const_data<scalar_t>(x);
          const scalar_t* g_data = const_data<scalar_t>(grad);
          scalar_t* dx_data = mutable_data<scalar_t>(dx);
          tiles.for_blocks([&](int64_t n, int64_t c, int64_t chunk, int64_t p,
                               int length) {
            T x_buffer[kBlock], g_buffer[kBlock], dx_buffer[kBlock];
            const int64_t at = tiles.offset(n, c, p);
            const T* from = load(x_data + at, stride, length, x_buffer);
            const T* g = load(g_data + at, stride, length, g_buffer);
            T* to = target(dx_data + at, stride, dx_buffer);
            T* sum = sums_data + (c * rows + n * tiles.chunks + chunk) * bins;
            if (p == chunk * kChunk) std::fill(sum, sum + bins, T(0));
            backward_block(g, from, to, length,
                           PwluPieces<T>(tables.data() + c * row, intervals),
                           sum);
            store(to, dx_data + at, stride, length);
          });
        }
        gradients = at::empty({units, intervals + 5}, at::kDouble);
        double* to = mutable_data<double>(gradients);
        const int64_t rows_of_unit = units == 1 ? view.channels * rows : rows;
        at::parallel_for(0, units, 32, [&](int64_t first, int64_t end) {
          std::vector<double> sum(bins);
          for (int64_t u = first; u < end; ++u) {
            const T* from = sums_data + u * rows_of_unit * bins;
            std::fill(sum.begin(), sum.end(), 0.);
            for (int64_t r = 0; r < rows_of_unit; ++r) {
              for (int64_t i = 0; i < bins; ++i) sum[i] += from[r * bins + i];
            }
            pwlu_parameter_gradients(
                sum.data(), tables.data() + u * table_size,
                parameters.clamped(u), intervals, to + u * (intervals + 5));
          }
        });
      });
  const int64_t values = points.size(1);
  // A parameter with one row for all units gets the sum over them.
  const auto finish = [&](at::Tensor gradient, const at::Tensor& parameter) {
    if (parameter.size(0) != gradients.size(0)) {
      gradient = gradient.sum(0, true);
    }
    return gradient.to(parameter.scalar_type()).contiguous();
  };
  const auto column = [&](int64_t i, const at::Tensor& parameter) {
    return finish(gradients.select(1, values + i), parameter);
  };
  return {dx,
          finish(gradients.narrow(1, 0, values), points),
          column(0, left_bound),
          column(1, right_bound),
          column(2, left_slope),
          column(3, right_slope)};
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, CPU, m) {
  m.impl("pwlu", pwlu_cpu);
  m.impl("pwlu_backward", pwlu_backward_cpu);
}

}  // namespace mm_acon
