// PWLU on blocks of a row, by the registers of avx512.h or avx2.h, each of
// which includes this file in its namespace. S is float, or half or bfloat16,
// which are converted on the way.

// Finds pieces by the same steps as PwluTable<float>::find.
struct Finder {
  // Where the next piece starts. No comparison with NaN holds, so that nothing
  // lies right of the last one.
  Table next;
  Floats left, inverse, last;

  MM_ACON_TARGET __attribute__((always_inline)) explicit Finder(
      const PwluTable<float>& table)
      : next(table.numbers + 1, table.last + 1),
        left(all(table.left)),
        inverse(all(table.inverse_length)),
        last(all(static_cast<float>(table.last))) {}

  MM_ACON_TARGET Ints operator()(Floats x) const {
    const Floats position = (x - left) * inverse + all(.5f);
    const Ints j = truncated(smaller(larger(position, all(0.f)), last));
    return one_more_where(x, next[j], j);
  }
};

// The end of a row, of fewer numbers than a register holds. Masks are for it
// alone: where memory is in no cache they cost twice as much.
template <typename S>
MM_ACON_TARGET inline Floats load_some(const S* from, int n) {
  S whole[kLanes] = {};
  std::copy_n(from, n, whole);
  return load(whole);
}
template <typename S>
MM_ACON_TARGET inline void store_some(S* to, Floats x, int n) {
  S whole[kLanes];
  store(whole, x);
  std::copy_n(whole, n, to);
}
template <typename S>
MM_ACON_TARGET inline Floats load(const S* from, int n) {
  return n >= kLanes ? load(from) : load_some(from, n);
}
template <typename S>
MM_ACON_TARGET inline void store(S* to, Floats x, int n) {
  n >= kLanes ? store(to, x) : store_some(to, x, n);
}

struct Pwlu {
  static bool takes(const PwluTable<float>& table) {
    return table.last < kMaxPieces && available();
  }

  template <typename S>
  MM_ACON_TARGET static void forward(const S* x, S* y, int n,
                                     const PwluTable<float>& table) {
    const int count = table.last + 1;
    const Finder find(table);
    const Table knot(table.numbers, count),
        slope(table.numbers + table.kind_step, count),
        start(table.numbers + 2 * table.kind_step, count);
    for (int i = 0; i < n; i += kLanes) {
      const Floats v = load(x + i, n - i);
      const Ints j = find(v);
      store(y + i, (v - knot[j]) * slope[j] + start[j], n - i);
    }
  }

  template <typename S>
  MM_ACON_TARGET static void slopes(const S* grad, const S* x, S* dx, int n,
                                    const PwluTable<float>& table) {
    const Finder find(table);
    const Table slope(table.numbers + table.kind_step, table.last + 1);
    for (int i = 0; i < n; i += kLanes) {
      const Ints j = find(load(x + i, n - i));
      store(dx + i, load(grad + i, n - i) * slope[j], n - i);
    }
  }

  template <typename S>
  MM_ACON_TARGET static void backward(const S* grad, const S* x, S* dx, int n,
                                      const PwluTable<float>& table,
                                      double* bins) {
    const int count = table.last + 1;
    Sums<float> sums(count, bins);
    const Finder find(table);
    const Table knot(table.numbers, count),
        slope(table.numbers + table.kind_step, count);
    constexpr int kAhead = 8 * kCacheLine / sizeof(S);
    alignas(kCacheLine) int32_t piece[kBlock];
    alignas(kCacheLine) float pairs[2 * kBlock];
    for (; n > 0; n -= kBlock, grad += kBlock, x += kBlock, dx += kBlock) {
      const int here = std::min(n, kBlock);
      for (int i = 0; i < here; i += kLanes) {
        const Floats g = load(grad + i, here - i), v = load(x + i, here - i);
        const Ints j = find(v);
        store(dx + i, g * slope[j], here - i);
        store(piece + i, j);
        store_pairs(pairs + 2 * i, g, g * (v - knot[j]));
        // Memory would idle while the pairs are added.
        __builtin_prefetch(grad + kAhead + i);
        __builtin_prefetch(x + kAhead + i);
      }
      sums.add(piece, pairs, here);
    }
    sums.finish();
  }
};
