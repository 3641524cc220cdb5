// PWLU (arXiv 2104.03693, Eq. 1 and Table 1), for CPU and CUDA.
#pragma once

#include "common.h"

namespace mm_acon {

// Bounds closer than this, or crossed, count as this far apart. The same
// number stands in mm_acon/ops/pwlu.py.
constexpr double kMinWidth = 1e-3;

// One channel's function as N + 2 straight pieces: left of the bounds, the N
// intervals, right of them. Piece j starts at knot[j] with the value start[j]
// and has the slope slope[j]; the left one "starts" at the left bound.
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

  static MM_ACON_HD void fill(const T* points, T left, T right, T left_slope,
                              T right_slope, int num_intervals, T* table) {
    const int pieces = num_intervals + 2;
    T *knot = table, *start = table + pieces, *slope = table + 2 * pieces;
    // Not from right below: left + kMinWidth rounds to left if left is large.
    const T width = right - left;
    const T length = (width < T(kMinWidth) ? T(kMinWidth) : width) /
                     num_intervals;
    const T narrowest = left + T(kMinWidth);
    right = right < narrowest ? narrowest : right;
    table[3 * pieces] = length;
    // A NaN bound makes every piece NaN, also the one that NaN falls into.
    knot[0] = length == length ? left : length;
    start[0] = points[0];
    slope[0] = left_slope;
    for (int i = 0; i < num_intervals; ++i) {
      knot[i + 1] = knot[0] + i * length;
      start[i + 1] = points[i];
      slope[i + 1] = (points[i + 1] - points[i]) / length;
    }
    knot[num_intervals + 1] = right;
    start[num_intervals + 1] = points[num_intervals];
    slope[num_intervals + 1] = right_slope;
  }

  MM_ACON_HD PwluPieces(const T* table, int num_intervals)
      : knot(table),
        start(table + num_intervals + 2),
        slope(table + 2 * (num_intervals + 2)),
        left(table[0]),
        inverse_length(T(1) / table[3 * (num_intervals + 2)]),
        last(num_intervals + 1) {}

  // The piece that x lies in. The division may be off by one interval next to
  // a knot; comparing with the knots themselves makes it exact. NaN gives 0.
  MM_ACON_HD int find(T x) const {
    T position = (x - left) * inverse_length + T(1);
    position = position > T(0) ? position : T(0);
    position = position < T(last) ? position : T(last);
    int j = static_cast<int>(position);
    j -= (j > 0) & (x < knot[j]);
    j += (j < last) & (x >= knot[j + (j < last)]);
    return j;
  }

  MM_ACON_HD T value(T x, int j) const {
    return (x - knot[j]) * slope[j] + start[j];
  }
};

// Gradients of a unit's parameters from its sums: for every piece that of g,
// then for every piece that of g (x - knot). Written in the order points,
// left bound, right bound, left slope, right slope.
MM_ACON_HD void pwlu_parameter_gradients(const double* sums,
                                         const double* table, bool clamped,
                                         int num_intervals, double* result) {
  const int pieces = num_intervals + 2, last = num_intervals + 1;
  const double* first = sums;
  const double* moment = sums + pieces;
  const double* slope = table + 2 * pieces;
  const double length = table[3 * pieces];
  double* points = result;
  points[0] = first[0];
  for (int i = 1; i <= num_intervals; ++i) points[i] = 0;
  double left = -slope[0] * first[0];
  double right = -slope[last] * first[last];
  for (int i = 0; i < num_intervals; ++i) {
    const double share = moment[i + 1] / length;
    points[i] += first[i + 1] - share;
    points[i + 1] += share;
    // How far along the bounds the elements lie, summed: 0 left, 1 right.
    const double along = (first[i + 1] * i + share) / num_intervals;
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
