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
                              PwluPieces<T> pieces, int32_t* piece,
                              T* pairs) {
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
                 double* bins) {
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

template <typename T>
MM_ACON_HD void table_loop(const T* x, T* y, int n, const T* slope,
                           const T* offset, T left, T inverse_length,
                           int last) {
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    T position = (x[i] - left) * inverse_length + T(1);
    position = position > T(0) ? position : T(0);
    position = position < T(last) ? position : T(last);
    const int j = static_cast<int>(position);
    y[i] = slope[j] * x[i] + offset[j];
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
MM_ACON_CLONES void table_any(const float* x, float* y, int n,
                              const float* slope, const float* offset,
                              float left, float inverse_length, int last) {
  table_loop(x, y, n, slope, offset, left, inverse_length, last);
}

#if defined(MM_ACON_HAS_AVX512_PATH)
bool fits_registers(int last) {
  return last < avx512::kMaxPieces && avx512::available();
}
#endif

void forward_block(const float* x, float* y, int n,
                   const PwluPieces<float>& pieces) {
  int done = 0;
#if defined(MM_ACON_HAS_AVX512_PATH)
  if (fits_registers(pieces.last)) done = avx512::forward(x, y, n, pieces);
#endif
  if (done < n) forward_any(x + done, y + done, n - done, pieces);
}
void forward_block(const double* x, double* y, int n,
                   const PwluPieces<double>& pieces) {
  forward_loop(x, y, n, pieces);
}
void backward_block(const float* grad, const float* x, float* dx, int n,
                    const PwluPieces<float>& pieces, double* bins) {
  int32_t piece[kBlock];
  float pairs[2 * kBlock];
  int done = 0;
#if defined(MM_ACON_HAS_AVX512_PATH)
  if (fits_registers(pieces.last)) {
    done = avx512::backward(grad, x, dx, n, pieces, piece, pairs, bins);
  }
#endif
  if (done == n) return;
  backward_any(grad + done, x + done, dx + done, n - done, pieces, piece,
               pairs);
  add_to_bins(piece, pairs, n - done, pieces.last + 1, bins);
}
void backward_block(const double* grad, const double* x, double* dx, int n,
                    const PwluPieces<double>& pieces, double* bins) {
  int32_t piece[kBlock];
  double pairs[2 * kBlock];
  backward_loop(grad, x, dx, n, pieces, piece, pairs);
  add_to_bins(piece, pairs, n, pieces.last + 1, bins);
}
void table_block(const float* x, float* y, int n, const float* slope,
                 const float* offset, float left, float inverse_length,
                 int last) {
  int done = 0;
#if defined(MM_ACON_HAS_AVX512_PATH)
  if (fits_registers(last)) {
    done = avx512::table(x, y, n, slope, offset, left, inverse_length, last);
  }
#endif
  if (done < n) {
    table_any(x + done, y + done, n - done, slope, offset, left,
              inverse_length, last);
  }
}
void table_block(const double* x, double* y, int n, const double* slope,
                 const double* offset, double left, double inverse_length,
                 int last) {
  table_loop(x, y, n, slope, offset, left, inverse_length, last);
}

// Units: channels that have numbers of their own, or 1.
int64_t count_units(std::initializer_list<at::Tensor> parameters) {
  int64_t units = 1;
  for (const auto& parameter : parameters) {
    units = std::max(units, parameter.size(0));
  }
  return units;
}

// The tables of PwluPieces, one row per unit.
template <typename T>
at::Tensor piece_tables(const at::Tensor& points, const at::Tensor& left_bound,
                        const at::Tensor& right_bound,
                        const at::Tensor& left_slope,
                        const at::Tensor& right_slope) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const int64_t units = count_units(
      {points, left_bound, right_bound, left_slope, right_slope});
  const int64_t values = points.size(1);
  const at::Tensor y = points.to(type).expand({units, values}).contiguous();
  const at::Tensor rest = at::stack({left_bound.expand(units).to(type),
                                     right_bound.expand(units).to(type),
                                     left_slope.expand(units).to(type),
                                     right_slope.expand(units).to(type)});
  const int intervals = static_cast<int>(values - 1);
  const int64_t size = PwluPieces<T>::table_size(intervals);
  at::Tensor tables = at::empty({units, size}, y.options());
  const T* r = rest.const_data_ptr<T>();
  for (int64_t u = 0; u < units; ++u) {
    PwluPieces<T>::fill(y.const_data_ptr<T>() + u * values, r[u],
                        r[units + u], r[2 * units + u], r[3 * units + u],
                        intervals, tables.mutable_data_ptr<T>() + u * size);
  }
  return tables;
}

at::Tensor pwlu_cpu(const at::Tensor& input, const at::Tensor& points,
                    const at::Tensor& left_bound,
                    const at::Tensor& right_bound,
                    const at::Tensor& left_slope,
                    const at::Tensor& right_slope) {
  const auto [x, view] = dense(input);
  at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const int intervals = static_cast<int>(points.size(1) - 1);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "pwlu", [&] {
        using T = math_t<scalar_t>;
        const at::Tensor tables = piece_tables<T>(
            points, left_bound, right_bound, left_slope, right_slope);
        const T* table = tables.const_data_ptr<T>();
        const int64_t row = tables.size(0) == 1 ? 0 : tables.size(1);
        const Tiles tiles(view);
        const int64_t stride = tiles.stride();
        const scalar_t* x_data = x.const_data_ptr<scalar_t>();
        scalar_t* y_data = y.mutable_data_ptr<scalar_t>();
        tiles.for_blocks([&](int64_t n, int64_t c, int64_t, int64_t p,
                             int length) {
          T x_buffer[kBlock], y_buffer[kBlock];
          const int64_t at = tiles.offset(n, c, p);
          const T* from = load(x_data + at, stride, length, x_buffer);
          T* to = target(y_data + at, stride, y_buffer);
          forward_block(from, to, length,
                        PwluPieces<T>(table + c * row, intervals));
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
  const auto [x, view] = dense(input);
  const at::Tensor grad = like(grad_output, x, view);
  at::Tensor dx = at::empty_like(x);
  const int intervals = static_cast<int>(points.size(1) - 1);
  const int64_t units = count_units(
      {points, left_bound, right_bound, left_slope, right_slope});
  const int64_t bins = 2 * (intervals + 2);
  const Tiles tiles(view);
  at::Tensor sums = at::zeros(
      {view.samples, view.channels, tiles.chunks, bins}, at::kDouble);
  if (x.numel() != 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, x.scalar_type(), "pwlu_backward", [&] {
          using T = math_t<scalar_t>;
          const at::Tensor tables = piece_tables<T>(
              points, left_bound, right_bound, left_slope, right_slope);
          const T* table = tables.const_data_ptr<T>();
          const int64_t row = units == 1 ? 0 : tables.size(1);
          const int64_t stride = tiles.stride();
          const scalar_t* x_data = x.const_data_ptr<scalar_t>();
          const scalar_t* g_data = grad.const_data_ptr<scalar_t>();
          scalar_t* dx_data = dx.mutable_data_ptr<scalar_t>();
          double* sums_data = sums.mutable_data_ptr<double>();
          tiles.for_blocks([&](int64_t n, int64_t c, int64_t chunk, int64_t p,
                               int length) {
            T x_buffer[kBlock], g_buffer[kBlock], dx_buffer[kBlock];
            const int64_t at = tiles.offset(n, c, p);
            const T* from = load(x_data + at, stride, length, x_buffer);
            const T* g = load(g_data + at, stride, length, g_buffer);
            T* to = target(dx_data + at, stride, dx_buffer);
            backward_block(
                g, from, to, length,
                PwluPieces<T>(table + c * row, intervals),
                sums_data +
                    ((n * view.channels + c) * tiles.chunks + chunk) * bins);
            store(to, dx_data + at, stride, length);
          });
        });
  }
  at::Tensor per_unit = sums.sum(std::vector<int64_t>{0, 2});
  if (units == 1) per_unit = per_unit.sum(0, true);
  per_unit = per_unit.contiguous();
  const at::Tensor tables = piece_tables<double>(
      points, left_bound, right_bound, left_slope, right_slope);
  const at::Tensor clamped =
      (right_bound - left_bound < kMinWidth).expand(units).contiguous();
  at::Tensor gradients = at::empty({units, intervals + 5}, at::kDouble);
  for (int64_t u = 0; u < units; ++u) {
    pwlu_parameter_gradients(
        per_unit.const_data_ptr<double>() + u * bins,
        tables.const_data_ptr<double>() + u * tables.size(1),
        clamped.const_data_ptr<bool>()[u], intervals,
        gradients.mutable_data_ptr<double>() + u * (intervals + 5));
  }
  // A parameter with one row for all units gets the sum over them.
  const auto finish = [&](at::Tensor gradient, const at::Tensor& parameter) {
    if (parameter.size(0) != units) gradient = gradient.sum(0, true);
    return gradient.to(parameter.scalar_type()).contiguous();
  };
  const auto column = [&](int64_t i, const at::Tensor& parameter) {
    return finish(gradients.select(1, intervals + 1 + i), parameter);
  };
  return {dx,
          finish(gradients.narrow(1, 0, intervals + 1), points),
          column(0, left_bound),
          column(1, right_bound),
          column(2, left_slope),
          column(3, right_slope)};
}

at::Tensor pwlu_table_cpu(const at::Tensor& input, const at::Tensor& slope,
                          const at::Tensor& offset, const at::Tensor& left,
                          const at::Tensor& inverse_length) {
  const auto [x, view] = dense(input);
  at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const int last = static_cast<int>(slope.size(1) - 1);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "pwlu_table", [&] {
        using T = math_t<scalar_t>;
        const auto type = c10::CppTypeToScalarType<T>::value;
        const at::Tensor a = slope.to(type).contiguous();
        const at::Tensor b = offset.to(type).contiguous();
        const at::Tensor l = left.to(type).contiguous();
        const at::Tensor s = inverse_length.to(type).contiguous();
        const Tiles tiles(view);
        const int64_t stride = tiles.stride();
        const int64_t unit = slope.size(0) == 1 ? 0 : 1;
        const scalar_t* x_data = x.const_data_ptr<scalar_t>();
        scalar_t* y_data = y.mutable_data_ptr<scalar_t>();
        tiles.for_blocks([&](int64_t n, int64_t c, int64_t, int64_t p,
                             int length) {
          T x_buffer[kBlock], y_buffer[kBlock];
          const int64_t at = tiles.offset(n, c, p), u = c * unit;
          const T* from = load(x_data + at, stride, length, x_buffer);
          T* to = target(y_data + at, stride, y_buffer);
          table_block(from, to, length,
                      a.const_data_ptr<T>() + u * (last + 1),
                      b.const_data_ptr<T>() + u * (last + 1),
                      l.const_data_ptr<T>()[u], s.const_data_ptr<T>()[u],
                      last);
          store(to, y_data + at, stride, length);
        });
      });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, CPU, m) {
  m.impl("pwlu", pwlu_cpu);
  m.impl("pwlu_backward", pwlu_backward_cpu);
  m.impl("pwlu_table", pwlu_table_cpu);
}

}  // namespace mm_acon
