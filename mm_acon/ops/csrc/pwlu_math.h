// PWLU (arXiv 2104.03693, Eq. 1 and Table 1), for CPU and CUDA.
#pragma once

#include "common.h"

namespace mm_acon {

// Bounds closer than this, or crossed, count as this far apart. The same
// number stands in mm_acon/ops/pwlu.py.
constexpr double kMinWidth = 1e-3;

void check_pwlu(const at::Tensor& x, const at::Tensor& points,
                const at::Tensor& left_bound, const at::Tensor& right_bound,
                const at::Tensor& left_slope, const at::Tensor& right_slope);

// The function consists of N + 2 straight pieces: left of the bounds, the N
// intervals, right of them. A piece starts at a knot, the left one at the
// left bound like the one after it.
template <typename T>
struct PwluPiece {
  T knot, start, slope;

  MM_ACON_HD T value(T x) const { return (x - knot) * slope + start; }
};

// What the pieces of a unit have in common.
template <typename T>
struct PwluUnit {
  MM_ACON_HD PwluUnit(T left, T right, T left_slope, T right_slope,
                      int num_intervals)
      : left_slope(left_slope),
        right_slope(right_slope),
        num_intervals(num_intervals) {
    // Not from this->right: left + kMinWidth rounds to left if left is large.
    const T width = right - left, narrowest = left + T(kMinWidth);
    clamped = width < T(kMinWidth);
    length = (clamped ? T(kMinWidth) : width) / num_intervals;
    // A NaN bound makes every piece NaN, also the one that NaN falls into.
    this->left = length == length ? left : length;
    this->right = right < narrowest ? narrowest : right;
  }

  template <typename S>
  MM_ACON_HD PwluPiece<T> piece(const S* points, int j) const {
    if (j == 0) return {left, T(points[0]), left_slope};
    const int i = j - 1;
    const T start = points[i];
    if (i == num_intervals) return {right, start, right_slope};
    return {left + i * length, start, (T(points[j]) - start) / length};
  }

  T left, right, left_slope, right_slope, length;
  int num_intervals;
  bool clamped;
};

// The piece that a position, in intervals from one before the left bound,
// lies in; NaN gives 0.
template <typename T>
MM_ACON_HD int pwlu_index(T position, int last) {
#if defined(__CUDA_ARCH__)
  int j = static_cast<int>(position);  // saturates
  j = j < last ? j : last;
  return j > 0 ? j : 0;
#else
  position = position > T(0) ? position : T(0);
  position = position < T(last) ? position : T(last);
  return static_cast<int>(position);
#endif
}

// The pieces of a unit in a table: for each its knot, its slope and, where
// values are asked for, its start; behind them NaN, past which no x lies, and
// 1 / length. Pieces are kStep apart, the numbers of a piece kind_step.
template <typename T, int kStep = 1>
struct PwluTable {
  PwluTable() = default;

  MM_ACON_HD PwluTable(const T* numbers, int pieces, int kind_step)
      : numbers(numbers),
        kind_step(kind_step),
        left(numbers[0]),
        inverse_length(numbers[pieces * kStep + kind_step]),
        last(pieces - 1) {}

  static MM_ACON_HD int size(int pieces, bool starts) {
    return (starts ? 3 : 2) * (pieces + 1);
  }

  // Every by-th piece from the first on: threads can share the work.
  template <typename S>
  static MM_ACON_HD void fill(const S* points, const PwluUnit<T>& unit,
                              bool starts, T* numbers, int kind_step,
                              int first = 0, int by = 1) {
    const int pieces = unit.num_intervals + 2;
    for (int j = first; j < pieces; j += by) {
      const PwluPiece<T> piece = unit.piece(points, j);
      T* to = numbers + j * kStep;
      to[0] = piece.knot;
      to[kind_step] = piece.slope;
      if (starts) to[2 * kind_step] = piece.start;
    }
    if (first == 0) {
      numbers[pieces * kStep] = std::numeric_limits<T>::quiet_NaN();
      numbers[pieces * kStep + kind_step] = T(1) / unit.length;
    }
  }

  // The piece that x lies in. From half an interval to the left, rounding
  // cannot lead too far, so that x lies in the piece found or in the next;
  // comparing with the knot between them makes it exact. NaN gives 0.
  MM_ACON_HD int find(T x) const {
    const int j = pwlu_index((x - left) * inverse_length + T(.5), last);
    return j + (x >= knot(j + 1));
  }

  MM_ACON_HD T knot(int j) const { return numbers[j * kStep]; }
  MM_ACON_HD T slope(int j) const { return numbers[j * kStep + kind_step]; }
  MM_ACON_HD T start(int j) const {
    return numbers[j * kStep + 2 * kind_step];
  }

  MM_ACON_HD T value(T x) const {
    const int j = find(x);
    return PwluPiece<T>{knot(j), start(j), slope(j)}.value(x);
  }

  const T* numbers;
  int kind_step;
  T left;
  T inverse_length;
  int last;  // N + 1
};

// The five parameters, in the operator's order, and the steps from unit to
// unit: 0 where all share a row.
template <typename T>
struct PwluView {
  const T* data[5];
  int64_t step[5];
  int pieces;  // N + 2

  MM_ACON_HD const T* points(int64_t unit) const {
    return data[0] + unit * step[0];
  }

  MM_ACON_HD PwluUnit<T> unit(int64_t index) const {
    return {data[1][index * step[1]], data[2][index * step[2]],
            data[3][index * step[3]], data[4][index * step[4]], pieces - 2};
  }
};

// Holds what a PwluView points to: the parameters as T, contiguous. Units are
// channels that have numbers of their own, or all channels as one.
template <typename T>
struct PwluParameters {
  explicit PwluParameters(const at::Tensor* given) {
    for (int i = 0; i < 5; ++i) {
      held[i] = as<T>(given[i]);
      numbers.data[i] = const_data<T>(held[i]);
      numbers.step[i] = held[i].size(0) == 1 ? 0 : held[i].stride(0);
      units = std::max(units, held[i].size(0));
    }
    numbers.pieces = static_cast<int>(held[0].size(1) + 1);
  }

  at::Tensor held[5];
  int64_t units = 1;
  PwluView<T> numbers;
};

// The gradients of a unit's parameters (Table 1) from its sums: for every
// piece that of g, then for every piece that of g (x - knot).
template <typename T>
struct PwluGradients {
  MM_ACON_HD PwluGradients(const double* sums, const PwluUnit<T>& unit)
      : first(sums),
        moment(sums + unit.num_intervals + 2),
        unit(unit),
        per_length(T(1) / unit.length),
        per_interval(T(1) / unit.num_intervals) {}

  // What the right end of interval i gets from it.
  MM_ACON_HD double share(int i) const { return moment[i + 1] * per_length; }

  MM_ACON_HD double point(int i) const {
    const double from_left = i == 0 ? first[0] : share(i - 1);
    return from_left +
           (first[i + 1] - (i == unit.num_intervals ? 0 : share(i)));
  }

  // Adds to those of the bounds what every by-th interval from the first on
  // gives.
  template <typename S>
  MM_ACON_HD void add_bounds(const S* points, int from, int by, double* left,
                             double* right) const {
    for (int i = from; i < unit.num_intervals; i += by) {
      const double slope = unit.piece(points, i + 1).slope;
      // How far along the bounds the elements lie, summed: 0 left, 1 right.
      const double along = (first[i + 1] * i + share(i)) * per_interval;
      *left -= slope * (first[i + 1] - along);
      *right -= slope * along;
    }
  }

  // The rest of them: bounds, then slopes, from the sums of add_bounds.
  MM_ACON_HD void finish(double left, double right, double* result) const {
    const int last = unit.num_intervals + 1;
    left -= unit.left_slope * first[0];
    right -= unit.right_slope * first[last];
    result[0] = unit.clamped ? left + right : left;
    result[1] = unit.clamped ? 0 : right;
    result[2] = moment[0];
    result[3] = moment[last];
  }

  const double* first;
  const double* moment;
  PwluUnit<T> unit;
  double per_length, per_interval;
};

}  // namespace mm_acon
