#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../pwlu_math.h"
#include "pwlu_sums.h"
#include "tiles.h"
#include "turned.h"

namespace mm_acon {
namespace {

// PWLU on a row for any processor, with the functions that pwlu_vector.h has
// for some. S is math_t, or half or bfloat16, which are converted on the way.
struct AnyPwlu {
  template <typename S, typename T = math_t<S>>
  MM_ACON_CLONES static void forward(const S* x, S* y, int n,
                                     PwluTable<T> table) {
#pragma omp simd
    for (int i = 0; i < n; ++i) y[i] = narrowed<S>(table.value(widened(x[i])));
  }

  template <typename S, typename T = math_t<S>>
  MM_ACON_CLONES static void slopes(const S* grad, const S* x, S* dx, int n,
                                    PwluTable<T> table) {
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const T slope = table.slope(table.find(widened(x[i])));
      dx[i] = narrowed<S>(widened(grad[i]) * slope);
    }
  }

  template <typename S, typename T = math_t<S>>
  MM_ACON_CLONES static void backward(const S* grad, const S* x, S* dx, int n,
                                      PwluTable<T> table, double* bins) {
    Sums<T> sums(table.last + 1, bins);
    int32_t piece[kBlock];
    T pairs[2 * kBlock];
    for (; n > 0; n -= kBlock, grad += kBlock, x += kBlock, dx += kBlock) {
      const int here = std::min(n, kBlock);
#pragma omp simd
      for (int i = 0; i < here; ++i) {
        const T g = widened(grad[i]), v = widened(x[i]);
        const int j = table.find(v);
        piece[i] = j;
        dx[i] = narrowed<S>(g * table.slope(j));
        pairs[2 * i] = g;
        pairs[2 * i + 1] = g * (v - table.knot(j));
      }
      sums.add(piece, pairs, here);
    }
    sums.finish();
  }
};

// Calls f with the fastest form that takes the table.
template <typename T, typename F>
void with_form(const PwluTable<T>& table, const F& f) {
#if defined(MM_ACON_HAS_INTRINSICS)
  if constexpr (std::is_same_v<T, float>) {
    if (avx512::Pwlu::takes(table)) return f(avx512::Pwlu());
    if (avx2::Pwlu::takes(table)) return f(avx2::Pwlu());
  }
#endif
  f(AnyPwlu());
}

template <typename S, typename T>
void forward(const S* x, S* y, int n, const PwluTable<T>& table) {
  with_form(table, [&](auto form) { form.forward(x, y, n, table); });
}

// Without bins dx alone.
template <typename S, typename T>
void backward(const S* grad, const S* x, S* dx, int n,
              const PwluTable<T>& table, double* bins) {
  with_form(table, [&](auto form) {
    bins ? form.backward(grad, x, dx, n, table, bins)
         : form.slopes(grad, x, dx, n, table);
  });
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
        const Tiles tiles(seen.view, kPatchRows<scalar_t>,
                          kPatchPlaces<scalar_t>);
        const Steps of_x = seen.x.steps, of_y = seen.out.steps;
        const scalar_t* x_data = const_data<scalar_t>(seen.x.tensor);
        scalar_t* y_data = mutable_data<scalar_t>(seen.out.tensor);
        tiles.for_patches([&](const Patch& patch) {
          if (!patch.channels_last) {
            return forward(x_data + patch.in(of_x), y_data + patch.in(of_y),
                           patch.length, tables.of(patch.channel));
          }
          Turned<scalar_t> x(of_x, patch), y(of_y, patch);
          x.load(x_data);
          for (int row = 0; row < patch.rows; ++row) {
            forward(x[row], y[row], patch.length,
                    tables.of(patch.channel + row));
          }
          y.store(y_data);
        });
      });
  return seen.result();
}

// The gradients of all units' parameters, one row each: of points, bounds and
// slopes. sums: of every unit `rows` rows of bins, as Sums has them.
template <typename T>
std::vector<double> parameter_gradients(const PwluParameters<T>& parameters,
                                        const double* sums, int64_t rows) {
  const PwluView<T>& numbers = parameters.numbers;
  const int values = numbers.pieces - 1;
  const int64_t bins = 2 * numbers.pieces;
  std::vector<double> result(parameters.units * (values + 4));
  at::parallel_for(0, parameters.units, 32, [&](int64_t first, int64_t end) {
    std::vector<double> sum(bins);
    for (int64_t u = first; u < end; ++u) {
      const double* from = sums + u * rows * bins;
      std::fill(sum.begin(), sum.end(), 0.);
      for (int64_t r = 0; r < rows; ++r) {
        const double* row = from + r * bins;
        for (int j = 0; j < numbers.pieces; ++j) {
          sum[j] += row[2 * j];
          sum[numbers.pieces + j] += row[2 * j + 1];
        }
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
        const Tiles tiles(view, kPatchRows<scalar_t>, kPatchPlaces<scalar_t>);
        const int64_t rows = view.samples * tiles.chunks;
        const int64_t bins = 2 * parameters.numbers.pieces;
        const at::Tensor sums =
            at::empty({all ? view.channels * rows * bins : 0}, at::kDouble);
        double* sums_data = mutable_data<double>(sums);
        if (input.numel() != 0) {
          const Tables<T> tables(parameters, /*starts=*/false);
          const Steps of_x = seen.x.steps, of_dx = seen.out.steps;
          const Steps of_grad = grad.steps;
          const scalar_t* x_data = const_data<scalar_t>(seen.x.tensor);
          const scalar_t* g_data = const_data<scalar_t>(grad.tensor);
          scalar_t* dx_data = mutable_data<scalar_t>(seen.out.tensor);
          tiles.for_patches([&](const Patch& patch) {
            const auto sums_of = [&](int64_t channel) {
              if (!all) return static_cast<double*>(nullptr);
              double* sum =
                  sums_data + (channel * rows + patch.sample * tiles.chunks +
                               patch.chunk) *
                                  bins;
              if (patch.starts_chunk) std::fill(sum, sum + bins, 0.);
              return sum;
            };
            if (!patch.channels_last) {
              return backward(
                  g_data + patch.in(of_grad), x_data + patch.in(of_x),
                  dx_data + patch.in(of_dx), patch.length,
                  tables.of(patch.channel), sums_of(patch.channel));
            }
            Turned<scalar_t> x(of_x, patch), g(of_grad, patch);
            Turned<scalar_t> dx(of_dx, patch);
            x.load(x_data);
            g.load(g_data);
            for (int row = 0; row < patch.rows; ++row) {
              const int64_t c = patch.channel + row;
              backward(g[row], x[row], dx[row], patch.length, tables.of(c),
                       sums_of(c));
            }
            dx.store(dx_data);
          });
        }
        if (all) {
          gradients = parameter_gradients(
              parameters, sums_data, units == 1 ? view.channels * rows : rows);
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
