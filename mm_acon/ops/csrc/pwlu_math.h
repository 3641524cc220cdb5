// PWLU (arXiv 2104.03693, Eq. 1 and Table 1), for CPU and CUDA.
#pragma once

#include "common.h"

namespace mm_acon {

// Bounds closer than this, or crossed, count as this far apart. The same
// number stands in mm_acon/ops/pwlu.py.
constexpr double kMinWidth = 1e-3;

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

// The pieces of a channel as a table of knots, starts and slopes.
template <typename T>
struct PwluPieces {
  const T* knot;
  const T* start;
  const T* slope;
  T left;
  T inverse_length;
  int last;  // N + 1

  // Numbers in the table of a channel: knots, starts and slopes of the
  // pieces, then the length of an interval.
  static MM_ACON_HD int table_size(int num_intervals) {
    return 3 * (num_intervals + 2) + 1;
  }

  // Every step-th piece from the first on: threads can share the work.
  template <typename S>
  static MM_ACON_HD void fill(const S* points, const PwluUnit<T>& unit,
                              T* table, int first = 0, int step = 1) {
    const int pieces = unit.num_intervals + 2;
    for (int j = first; j < pieces; j += step) {
      const PwluPiece<T> piece = unit.piece(points, j);
      table[j] = piece.knot;
      table[pieces + j] = piece.start;
      table[2 * pieces + j] = piece.slope;
    }
    if (first == 0) table[3 * pieces] = unit.length;
  }

  template <typename S>
  static MM_ACON_HD void fill(const S* points, T left, T right, T left_slope,
                              T right_slope, int num_intervals, T* table) {
    fill(points, {left, right, left_slope, right_slope, num_intervals}, table);
  }

  MM_ACON_HD PwluPieces(const T* table, int num_intervals)
      : knot(table),
        start(table + num_intervals + 2),
        slope(table + 2 * (num_intervals + 2)),
        left(table[0]),
        inverse_length(T(1) / table[3 * (num_intervals + 2)]),
        last(num_intervals + 1) {}

  // The piece that x lies in. From half an interval to the left, rounding
  // cannot lead too far, so that x lies in the piece found or in the next;
  // comparing with the knot between them makes it exact. NaN gives 0.
  MM_ACON_HD int find(T x) const {
    const int j = pwlu_index((x - left) * inverse_length + T(.5), last);
    return j + ((j < last) & (x >= knot[j + (j < last)]));
  }

  MM_ACON_HD T value(T x, int j) const {
    return PwluPiece<T>{knot[j], start[j], slope[j]}.value(x);
  }
};

// Gradients of a unit's parameters from its sums: for every piece that of g,
// then for every piece that of g (x - knot). Written in the order points,
// left bound, right bound, left slope, right slope.
template <typename T>
MM_ACON_HD void pwlu_parameter_gradients(const double* sums, const T* table,
                                         bool clamped, int num_intervals,
                                         double* result) {
  const int pieces = num_intervals + 2, last = num_intervals + 1;
  const double* first = sums;
  const double* moment = sums + pieces;
  const T* slope = table + 2 * pieces;
  const double per_length = 1 / double(table[3 * pieces]);
  const double per_interval = 1 / double(num_intervals);
  double* points = result;
  points[0] = first[0];
  for (int i = 1; i <= num_intervals; ++i) points[i] = 0;
  double left = -slope[0] * first[0];
  double right = -slope[last] * first[last];
  for (int i = 0; i < num_intervals; ++i) {
    const double share = moment[i + 1] * per_length;
    points[i] += first[i + 1] - share;
    points[i + 1] += share;
    // How far along the bounds the elements lie, summed: 0 left, 1 right.
    const double along = (first[i + 1] * i + share) * per_interval;
    left -= slope[i + 1] * (first[i + 1] - along);
    right -= slope[i + 1] * along;
  }
  points[num_intervals] += first[last];
  double* rest = result + num_intervals + 1;
  rest[0] = clamped ? left + right : left;
  rest[1] = clamped ? 0 : right;
  rest[2] = moment[0];
  rest[3] = moment[last];
}

}  // namespace mm_acon
