#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../pwlu_math.h"
#include "pwlu_avx2.h"
#include "pwlu_avx512.h"
#include "tiles.h"

namespace mm_acon {
namespace {

template <typename T>
MM_ACON_HD void forward_loop(const T* x, T* y, int n, PwluTable<T> table) {
#pragma omp simd
  for (int i = 0; i < n; ++i) y[i] = table.value(x[i]);
}

template <typename T>
MM_ACON_HD void slope_loop(const T* grad, const T* x, T* dx, int n,
                           PwluTable<T> table) {
#pragma omp simd
  for (int i = 0; i < n; ++i) dx[i] = grad[i] * table.slope(table.find(x[i]));
}

// Writes dx, and for add_to_bins every element's piece and its pair of
// numbers (g, g (x - knot)).
template <typename T>
MM_ACON_HD void backward_loop(const T* grad, const T* x, T* dx, int n,
                              PwluTable<T> table, int32_t* piece, T* pairs) {
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const int j = table.find(x[i]);
    piece[i] = j;
    dx[i] = grad[i] * table.slope(j);
    pairs[2 * i] = grad[i];
    pairs[2 * i + 1] = grad[i] * (x[i] - table.knot(j));
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
                                PwluTable<float> table) {
  forward_loop(x, y, n, table);
}
MM_ACON_CLONES void slope_any(const float* grad, const float* x, float* dx,
                              int n, PwluTable<float> table) {
  slope_loop(grad, x, dx, n, table);
}
MM_ACON_CLONES void backward_any(const float* grad, const float* x, float* dx,
                                 int n, PwluTable<float> table, int32_t* piece,
                                 float* pairs) {
  backward_loop(grad, x, dx, n, table, piece, pairs);
}
#if defined(MM_ACON_HAS_INTRINSICS)
bool fits_avx512(int last) {
  return last < avx512::kMaxPieces && avx512::available();
}
bool fits_avx2(int last) {
  return last < avx2::kMaxPieces && avx2::available();
}
#endif

void forward_block(const float* x, float* y, int n,
                   const PwluTable<float>& table) {
#if defined(MM_ACON_HAS_INTRINSICS)
  if (fits_avx512(table.last)) return avx512::forward(x, y, n, table);
  if (fits_avx2(table.last)) return avx2::forward(x, y, n, table);
#endif
  forward_any(x, y, n, table);
}
void forward_block(const double* x, double* y, int n,
                   const PwluTable<double>& table) {
  forward_loop(x, y, n, table);
}

template <typename T, typename Loop>
void backward_by_blocks(const T* grad, const T* x, T* dx, int n,
                        const PwluTable<T>& table, T* bins, const Loop& loop) {
  int32_t piece[kBlock];
  T pairs[2 * kBlock];
  for (int i = 0; i < n; i += kBlock) {
    const int length = std::min(kBlock, n - i);
    loop(grad + i, x + i, dx + i, length, table, piece, pairs);
    add_to_bins(piece, pairs, length, table.last + 1, bins);
  }
}

// Without bins dx alone.
void backward_block(const float* grad, const float* x, float* dx, int n,
                    const PwluTable<float>& table, float* bins) {
#if defined(MM_ACON_HAS_INTRINSICS)
  if (fits_avx512(table.last)) {
    return bins ? avx512::backward(grad, x, dx, n, table, bins)
                : avx512::slopes(grad, x, dx, n, table);
  }
  if (fits_avx2(table.last)) {
    if (!bins) return avx2::slopes(grad, x, dx, n, table);
    return backward_by_blocks(
        grad, x, dx, n, table, bins,
        [](const float* grad, const float* x, float* dx, int n,
           const PwluTable<float>& table, int32_t* piece, float* pairs) {
          const int i = avx2::backward(grad, x, dx, n, table, piece, pairs);
          backward_loop(grad + i, x + i, dx + i, n - i, table, piece + i,
                        pairs + 2 * i);
        });
  }
#endif
  if (!bins) return slope_any(grad, x, dx, n, table);
  backward_by_blocks(grad, x, dx, n, table, bins, backward_any);
}
void backward_block(const double* grad, const double* x, double* dx, int n,
                    const PwluTable<double>& table, double* bins) {
  if (!bins) return slope_loop(grad, x, dx, n, table);
  backward_by_blocks(grad, x, dx, n, table, bins, backward_loop<double>);
}

// The tables of all units.
template <typename T>
struct Tables {
  Tables(const PwluParameters<T>& parameters, bool starts)
      : pieces(parameters.numbers.pieces),
        size(PwluTable<T>::size(pieces, starts)),
        step(parameters.units == 1 ? 0 : size),
        numbers(parameters.units * size) {
    for (int64_t u = 0; u < parameters.units; ++u) {
      PwluTable<T>::fill(parameters.numbers.points(u),
                         parameters.numbers.unit(u), starts,
                         numbers.data() + u * size, pieces + 1);
    }
  }

  PwluTable<T> of(int64_t channel) const {
    return {numbers.data() + channel * step, pieces, pieces + 1};
  }

  int pieces;
  int64_t size, step;
  std::vector<T> numbers;
};

at::Tensor pwlu_cpu(const at::Tensor& input, const at::Tensor& points,
                    const at::Tensor& left_bound,
                    const at::Tensor& right_bound,
                    const at::Tensor& left_slope,
                    const at::Tensor& right_slope) {
  check_pwlu(input, points, left_bound, right_bound, left_slope, right_slope);
  const Seen seen(input);
  if (input.numel() == 0) return seen.result();
  const at::Tensor given[] = {points, left_bound, right_bound, left_slope,
                              right_slope};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "pwlu", [&] {
        using T = math_t<scalar_t>;
        const Tables<T> tables(PwluParameters<T>(given), /*starts=*/true);
        const Tiles<scalar_t> tiles(seen.view, kCacheLine / sizeof(scalar_t));
        const Steps of_x = seen.x.steps, of_y = seen.out.steps;
        const scalar_t* x_data = const_data<scalar_t>(seen.x.tensor);
        scalar_t* y_data = mutable_data<scalar_t>(seen.out.tensor);
        tiles.for_patches([&](const Patch& patch) {
          const Input<scalar_t> x(x_data, of_x, patch);
          Output<scalar_t> y(y_data, of_y, patch);
          for (int row = 0; row < patch.rows; ++row) {
            forward_block(x[row], y[row], patch.length,
                          tables.of(patch.channel + row));
          }
          y.store(of_y, patch);
        });
      });
  return seen.result();
}

// The gradients of all units' parameters, one row each: of points, bounds and
// slopes. sums: of every unit `rows` rows of bins.
template <typename T>
std::vector<double> parameter_gradients(const PwluParameters<T>& parameters,
                                        const T* sums, int64_t rows) {
  const PwluView<T>& numbers = parameters.numbers;
  const int values = numbers.pieces - 1;
  const int64_t bins = 2 * numbers.pieces;
  std::vector<double> result(parameters.units * (values + 4));
  at::parallel_for(0, parameters.units, 32, [&](int64_t first, int64_t end) {
    std::vector<double> sum(bins);
    for (int64_t u = first; u < end; ++u) {
      const T* from = sums + u * rows * bins;
      std::fill(sum.begin(), sum.end(), 0.);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < bins; ++i) sum[i] += from[r * bins + i];
      }
      const PwluGradients<T> gradients(sum.data(), numbers.unit(u));
      double* to = result.data() + u * (values + 4);
      for (int i = 0; i < values; ++i) to[i] = gradients.point(i);
      double left = 0, right = 0;
      gradients.add_bounds(numbers.points(u), 0, 1, &left, &right);
      gradients.finish(left, right, to + values);
    }
  });
  return result;
}

// `width` columns from the first on, in the shape and dtype of a parameter,
// which gets the sum over all units if it has one row for them.
at::Tensor columns(const std::vector<double>& gradients, int64_t units,
                   int64_t first, int64_t width, const at::Tensor& parameter) {
  const int64_t row = gradients.size() / units;
  std::vector<double> result(parameter.numel());
  for (int64_t u = 0; u < units; ++u) {
    double* to = result.data() + (parameter.size(0) == 1 ? 0 : u * width);
    for (int64_t i = 0; i < width; ++i)
      to[i] += gradients[u * row + first + i];
  }
  return as_gradient(result.data(), parameter);
}

Gradients<6> pwlu_backward_cpu(const at::Tensor& grad_output,
                               const at::Tensor& input,
                               const at::Tensor& points,
                               const at::Tensor& left_bound,
                               const at::Tensor& right_bound,
                               const at::Tensor& left_slope,
                               const at::Tensor& right_slope, Asked<6> asked) {
  check_pwlu(input, points, left_bound, right_bound, left_slope, right_slope);
  const Seen seen(input);
  const View& view = seen.view;
  const Array grad = seen.like(grad_output, "the gradient");
  const at::Tensor given[] = {points, left_bound, right_bound, left_slope,
                              right_slope};
  const bool all = std::any_of(asked.begin() + 1, asked.end(),
                               [](bool one) { return one; });
  int64_t units = 0;
  std::vector<double> gradients;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "pwlu_backward", [&] {
        using T = math_t<scalar_t>;
        const PwluParameters<T> parameters(given);
        units = parameters.units;
        const Tiles<scalar_t> tiles(view, kCacheLine / sizeof(scalar_t));
        const int64_t rows = view.samples * tiles.chunks;
        const int64_t bins = 2 * parameters.numbers.pieces;
        const at::Tensor sums =
            at::empty({all ? view.channels * rows * bins : 0},
                      c10::CppTypeToScalarType<T>::value);
        T* sums_data = mutable_data<T>(sums);
        if (input.numel() != 0) {
          const Tables<T> tables(parameters, /*starts=*/false);
          const Steps of_x = seen.x.steps, of_dx = seen.out.steps;
          const Steps of_grad = grad.steps;
          const scalar_t* x_data = const_data<scalar_t>(seen.x.tensor);
          const scalar_t* g_data = const_data<scalar_t>(grad.tensor);
          scalar_t* dx_data = mutable_data<scalar_t>(seen.out.tensor);
          tiles.for_patches([&](const Patch& patch) {
            const Input<scalar_t> x(x_data, of_x, patch);
            const Input<scalar_t> g(g_data, of_grad, patch);
            Output<scalar_t> dx(dx_data, of_dx, patch);
            for (int row = 0; row < patch.rows; ++row) {
              const int64_t c = patch.channel + row;
              T* sum = nullptr;
              if (all) {
                sum = sums_data +
                      (c * rows + patch.sample * tiles.chunks + patch.chunk) *
                          bins;
                if (patch.starts_chunk) std::fill(sum, sum + bins, T(0));
              }
              backward_block(g[row], x[row], dx[row], patch.length,
                             tables.of(c), sum);
            }
            dx.store(of_dx, patch);
          });
        }
        if (all) {
          gradients =
              parameter_gradients(parameters, const_data<T>(sums),
                                  units == 1 ? view.channels * rows : rows);
        }
      });
  const auto column = [&](int i) {
    const int64_t values = points.size(1);
    if (!asked[1 + i]) return at::Tensor();
    return i == 0 ? columns(gradients, units, 0, values, points)
                  : columns(gradients, units, values + i - 1, 1, given[i]);
  };
  return {asked[0] ? seen.result() : at::Tensor(),
          column(0),
          column(1),
          column(2),
          column(3),
          column(4)};
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, CPU, m) {
  m.impl("pwlu", pwlu_cpu);
  m.impl("pwlu_backward", pwlu_backward_cpu);
}

}  // namespace mm_acon
