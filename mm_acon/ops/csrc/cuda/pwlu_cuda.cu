#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "../pwlu_math.h"
#include "layout.cuh"

namespace mm_acon {
namespace {

// Of a block: at most, where every thread has bins.
template <Pass kPass>
constexpr int kThreads = kPass == Pass::kAll ? 128 : 256;
// A warp's chunk of a row, and the elements that a block covers.
constexpr int64_t kPwluChunk = 1024, kBlockElements = 16384;
// Pixels for a thread.
template <Pass kPass>
constexpr int64_t kPixels = kPass == Pass::kAll ? 128 : 32;
// Blocks that are to run on a multiprocessor at once.
constexpr int kBlocksAtOnce = 4;

// A table in shared memory for every channel: tables of several lie side by
// side, kStride apart, so that every lane of a warp reads from its own bank.
// With kStride = 1 all lanes share a table, and 3 numbers a piece put up to 32
// pieces in different banks: there the starts stay, which only values need.
template <int kStride, Pass kPass>
constexpr bool kStarts = kPass == Pass::kForward || kStride == 1;

template <typename T, int kStride, Pass kPass>
using SharedTable = PwluTable<T, (kStarts<kStride, kPass> ? 3 : 2) * kStride>;

// Writes every by-th piece from the first on.
template <int kStride, Pass kPass, typename T>
__device__ __forceinline__ void fill_table(const PwluView<T>& numbers,
                                           int64_t channel, T* to, int first,
                                           int by) {
  SharedTable<T, kStride, kPass>::fill(
      numbers.points(channel), numbers.unit(channel), kStarts<kStride, kPass>,
      to, kStride, first, by);
}

template <typename scalar_t>
struct PwluArrays {
  Elements<const scalar_t> x, grad;
  Elements<scalar_t> out;  // y or dx
};

// Sums of one piece: of g and of g (x - knot).
template <typename T>
struct alignas(2 * sizeof(T)) Bin {
  T first, moment;

  __device__ __forceinline__ void operator+=(const Bin& other) {
    first += other.first;
    moment += other.moment;
  }
};

// A block's shared memory: bins of every thread, [bin][thread], so that the
// lanes of a warp never want the same bank, whatever their pieces; then
// tables.
template <typename T>
struct Shared {
  __device__ __forceinline__ explicit Shared(int bins_of_thread)
      : bins(static_cast<Bin<T>*>(shared_memory())),
        table(reinterpret_cast<T*>(bins + bins_of_thread * blockDim.x)) {
    for (int i = 0; i < bins_of_thread; ++i) {
      bins[i * blockDim.x + threadIdx.x] = {};
    }
  }

  Bin<T>* bins;
  T* table;
};

// What one thread computes. kUnits: 1, or a unit per element of a vector;
// there are bins for [piece][unit].
template <typename scalar_t, int kStride, int kUnits, Pass kPass>
struct PwluBody {
  using T = math_t<scalar_t>;
  static constexpr bool kBackward = kPass != Pass::kForward;
  static constexpr bool kAll = kPass == Pass::kAll;
  static constexpr bool kPixels = kStride != 1;
  // Bytes that a thread has on their way, and those of an element.
  // With more, a backward pass of half precision runs out of registers.
  static constexpr int kInFlight = kStride == 1 ? 32 : kAll ? 48 : 64;
  static constexpr int kBytes = (kBackward ? 2 : 1) * sizeof(scalar_t);

  template <int V>
  struct Loaded {
    Vector<scalar_t, V> x, grad;
  };

  __device__ __forceinline__ PwluBody(const PwluArrays<scalar_t>& arrays,
                                      const Shared<T>& shared, const T* tables,
                                      int pieces)
      : arrays(arrays), bins(shared.bins + threadIdx.x), threads(blockDim.x) {
#pragma unroll
    for (int k = 0; k < kUnits; ++k) {
      table[k] = {tables + k * kWarp, pieces, kStride};
    }
  }

  // At a place of a channel, from which on elements are counted.
  __device__ __forceinline__ void enter(int64_t sample, int64_t channel,
                                        int64_t place) {
    x.enter(arrays.x, sample, channel, place);
    out.enter(arrays.out, sample, channel, place);
    if constexpr (kBackward) grad.enter(arrays.grad, sample, channel, place);
  }

  __device__ __forceinline__ void advance(int elements) {
    x.data += elements;
    out.data += elements;
    if constexpr (kBackward) grad.data += elements;
  }

  // Elements up to the first vector, more than there are if there is none.
  template <int V>
  __device__ __forceinline__ int head() const {
    const int found = out.template head<V>();
    bool alike = x.template head<V>() == found;
    if constexpr (kBackward) alike &= grad.template head<V>() == found;
    return alike ? found : std::numeric_limits<int>::max();
  }

  template <int V>
  __device__ __forceinline__ Loaded<V> load(int at) const {
    Loaded<V> loaded;
    loaded.x = x.template load<V>(at);
    if constexpr (kBackward) loaded.grad = grad.template load<V>(at);
    return loaded;
  }

  template <int V>
  __device__ __forceinline__ void apply(const Loaded<V>& loaded,
                                        int at) const {
    Vector<scalar_t, V> result;
    Bin<T>* bin[V];
    T from_knot[V];
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const int unit = kUnits == 1 ? 0 : e;
      const T value = loaded.x.number(e);
      if constexpr (kBackward) {
        const int j = table[unit].find(value);
        result.at[e] = loaded.grad.number(e) * table[unit].slope(j);
        if constexpr (kAll) {
          from_knot[e] = value - table[unit].knot(j);
          bin[e] = bins + (j * kUnits + unit) * threads;
        }
      } else {
        result.at[e] = table[unit].value(value);
      }
    }
    out.store(at, result);
    if constexpr (kAll) {
      // The units of a vector have different bins: all can be read first.
#pragma unroll
      for (int first = 0; first < V; first += kUnits) {
        Bin<T> sum[kUnits];
#pragma unroll
        for (int k = 0; k < kUnits; ++k) {
          const T g = loaded.grad.number(first + k);
          sum[k] = *bin[first + k];
          sum[k] += {g, g * from_knot[first + k]};
        }
#pragma unroll
        for (int k = 0; k < kUnits; ++k) *bin[first + k] = sum[k];
      }
    }
  }

  const PwluArrays<scalar_t>& arrays;
  Cursor<const scalar_t, kPixels> x, grad;
  Cursor<scalar_t, kPixels> out;
  SharedTable<T, kStride, kPass> table[kUnits];
  Bin<T>* bins;  // this thread's first
  int threads;
};

// A block takes `per_block` chunks of the rows of one channel. sums: (C,
// segments, 2 (N + 2)).
template <typename scalar_t, Pass kPass>
__global__ void __launch_bounds__(kThreads<kPass>, kResident / kThreads<kPass>)
    pwlu_rows(Rows rows, int64_t per_block, PwluArrays<scalar_t> arrays,
              PwluView<math_t<scalar_t>> numbers, math_t<scalar_t>* sums) {
  using T = math_t<scalar_t>;
  const int threads = blockDim.x, pieces = numbers.pieces;
  const int64_t segment = blockIdx.x / rows.channels;
  const int64_t channel = blockIdx.x - segment * rows.channels;
  const Shared<T> shared(kPass == Pass::kAll ? pieces : 0);
  fill_table<1, kPass>(numbers, channel, shared.table, threadIdx.x, threads);
  __syncthreads();
  PwluBody<scalar_t, 1, 1, kPass> body(arrays, shared, shared.table, pieces);

  const int step = threads >> rows.log2_lanes;
  const int64_t count = rows.samples * rows.chunks;
  int64_t i = segment * per_block + (threadIdx.x >> rows.log2_lanes);
  const int64_t end = std::min(count, (segment + 1) * per_block);
  int64_t sample = i / rows.chunks, chunk = i - sample * rows.chunks;
  const int64_t samples_step = step / rows.chunks;
  const int64_t chunks_step = step - samples_step * rows.chunks;
  for (; i < end; i += step) {
    rows.walk<kVector<scalar_t>>(body, sample, channel, chunk);
    sample += samples_step;
    chunk += chunks_step;
    if (chunk >= rows.chunks) {
      chunk -= rows.chunks;
      ++sample;
    }
  }

  if constexpr (kPass == Pass::kAll) {
    __syncthreads();
    const int64_t segments = gridDim.x / rows.channels;
    sums += (channel * segments + segment) * 2 * pieces;
    const int lane = threadIdx.x % kWarp;
    for (int j = threadIdx.x / kWarp; j < pieces; j += threads / kWarp) {
      Bin<T> sum{};
      for (int t = lane; t < threads; t += kWarp) {
        sum += shared.bins[j * threads + t];
      }
      sum.first = sum_lanes(sum.first, kWarp);
      sum.moment = sum_lanes(sum.moment, kWarp);
      if (lane == 0) {
        sums[j] = sum.first;
        sums[pieces + j] = sum.moment;
      }
    }
  }
}

// The table of a lane's channels: [number][channel][lane], so that every lane
// reads from its own bank.
template <typename scalar_t, int K, Pass kPass>
__global__ void __launch_bounds__(kThreads<kPass>, kResident / kThreads<kPass>)
    pwlu_pixels(Pixels pixels, PwluArrays<scalar_t> arrays,
                PwluView<math_t<scalar_t>> numbers, math_t<scalar_t>* sums) {
  using T = math_t<scalar_t>;
  constexpr int kStride = K * kWarp;
  const int threads = blockDim.x, pieces = numbers.pieces;
  const int warps = threads / kWarp;
  const Place<K> place(pixels);
  const Shared<T> shared(kPass == Pass::kAll ? K * pieces : 0);
  T* column = shared.table + place.lane;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (place.channel < pixels.channels) {
      fill_table<kStride, kPass>(numbers, place.channel + k,
                                 column + k * kWarp, place.warp, warps);
    }
  }
  __syncthreads();
  PwluBody<scalar_t, kStride, K, kPass> body(arrays, shared, column, pieces);
  place.walk(body, pixels);

  if constexpr (kPass == Pass::kAll) {
    __syncthreads();
    // The bins of all threads with the same channels, added up and turned
    // round to [channel][2 (N + 2)] where the tables were.
    T* turned = shared.table;
    const int row = 2 * pieces + 1;
    for (int j = place.warp; j < pieces; j += warps) {
      if (place.lane >= pixels.width) break;
#pragma unroll
      for (int k = 0; k < K; ++k) {
        Bin<T> sum{};
        for (int first = 0; first < threads; first += kWarp) {
          for (int i = 0; i < pixels.per_warp; ++i) {
            sum += shared.bins[(j * K + k) * threads + first +
                               i * pixels.width + place.lane];
          }
        }
        turned[(place.lane * K + k) * row + j] = sum.first;
        turned[(place.lane * K + k) * row + pieces + j] = sum.moment;
      }
    }
    __syncthreads();
    const int64_t left = pixels.channels - place.first_channel;
    for (int c = place.warp; c < pixels.width * K && c < left; c += warps) {
      T* to =
          sums + ((place.first_channel + c) * pixels.chunks + place.segment) *
                     2 * pieces;
      for (int i = place.lane; i < 2 * pieces; i += kWarp) {
        to[i] = turned[c * row + i];
      }
    }
  }
}

// Null are those that are not asked for.
template <typename T>
struct PwluTargets {
  T* data[5];
};

// A block per unit: the parameters' gradients from the sums of its segments.
template <typename T>
__global__ void __launch_bounds__(kSumThreads, 1)
    pwlu_finish(const T* sums, int64_t segments, PwluView<T> numbers,
                PwluTargets<T> to) {
  const int width = 2 * numbers.pieces, values = numbers.pieces - 1;
  const int64_t index = blockIdx.x;
  double* buffer = static_cast<double*>(shared_memory());
  sum_columns(sums + index * segments * width, segments, width, buffer);
  const PwluGradients<T> gradients(buffer, numbers.unit(index));
  if (to.data[0]) {
    for (int i = threadIdx.x; i < values; i += blockDim.x) {
      to.data[0][index * values + i] = gradients.point(i);
    }
  }
  if (threadIdx.x >= kWarp) return;
  double left = 0, right = 0;
  gradients.add_bounds(numbers.points(index), threadIdx.x, kWarp, &left,
                       &right);
  left = sum_lanes(left, kWarp);
  right = sum_lanes(right, kWarp);
  if (threadIdx.x == 0) {
    double rest[4];
    gradients.finish(left, right, rest);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (to.data[1 + i]) to.data[1 + i][index] = rest[i];
    }
  }
}

// How a block's shared memory is laid out: bins of `units` channels for every
// thread, and tables.
template <typename T, Pass kPass>
struct SharedPlan {
  int64_t bytes(int units, int tables, int threads) const {
    const int64_t bins = kPass == Pass::kAll ? pieces : 0;
    return threads * bins * units * sizeof(Bin<T>) +
           int64_t{tables} *
               PwluTable<T>::size(pieces,
                                  kPass == Pass::kForward || tables == 1) *
               sizeof(T);
  }

  // Fewer threads where many intervals need many bins.
  int threads(int units, int tables, int64_t share) const {
    int found = kThreads<kPass>;
    while (kPass == Pass::kAll && found > kWarp &&
           bytes(units, tables, found) > share) {
      found /= 2;
    }
    return found;
  }

  int pieces;
};

void check_shared(int64_t bytes, int pieces, int64_t limit) {
  TORCH_CHECK(
      bytes <= limit, "pwlu with N = ", pieces - 2, " intervals needs ", bytes,
      " bytes of shared memory, and a ", "block on this GPU has ", limit,
      "; write num_intervals=", pieces * limit / bytes - 2, " or less.");
}

// y, or dx, and the sums for pwlu_finish.
template <Pass kPass, typename scalar_t>
at::Tensor pwlu_run(const PwluArrays<scalar_t>& arrays, const View& view,
                    const PwluParameters<math_t<scalar_t>>& parameters) {
  using T = math_t<scalar_t>;
  constexpr bool kAll = kPass == Pass::kAll;
  const PwluView<T>& numbers = parameters.numbers;
  const int pieces = numbers.pieces;
  const SharedPlan<T, kPass> plan{pieces};
  const int64_t share = shared_of_each(kBlocksAtOnce);
  at::Tensor sums;
  const auto make_sums = [&](int64_t segments) -> T* {
    if (!kAll) return nullptr;
    sums = at::empty({view.channels, segments, 2 * pieces},
                     parameters.held[0].options());
    return mutable_data<T>(sums);
  };
  // The backward pass has to find room for what the forward pass takes.
  const auto check = [&](int tables) {
    const SharedPlan<T, Pass::kAll> backward{pieces};
    check_shared(std::max(backward.bytes(1, tables, kWarp),
                          plan.bytes(1, tables, kWarp)),
                 pieces, shared_limit());
  };
  const auto run_pixels = [&](auto vector) {
    constexpr int K = decltype(vector)::value;
    const int threads = plan.threads(K, K * kWarp, share);
    const Pixels pixels(view, K, threads / kWarp, kPixels<kPass>);
    launch(pwlu_pixels<scalar_t, K, kPass>, pixels.blocks(), threads,
           plan.bytes(K, K * kWarp, threads), pixels, arrays, numbers,
           make_sums(pixels.chunks));
  };
  if (view.channels_last) {
    check(kWarp);
    constexpr int K =
        kAll ? std::min(2, kChannels<scalar_t>) : kChannels<scalar_t>;
    if (owns(arrays.x, view.channels, K) &&
        owns(arrays.grad, view.channels, K) &&
        owns(arrays.out, view.channels, K) &&
        plan.bytes(K, K * kWarp, kThreads<kPass>) <= share) {
      run_pixels(std::integral_constant<int, K>());
    } else {
      run_pixels(std::integral_constant<int, 1>());
    }
    return sums;
  }
  check(1);
  const int threads = plan.threads(1, 1, share);
  const Rows rows(view, kPwluChunk, kVector<scalar_t>);
  // Whole rounds of the block's groups of lanes, fewer in small tensors.
  const int64_t groups = threads / rows.lanes();
  const int64_t count = view.samples * rows.chunks;
  const int64_t most = ceil_div(
      kBlockElements, groups * std::min<int64_t>(view.inner, rows.length));
  const int64_t fair = ceil_div(count * view.channels, groups * 1024);
  const int64_t per_block = groups * std::min(most, fair);
  const int64_t segments = ceil_div(count, per_block);
  launch(pwlu_rows<scalar_t, kPass>, view.channels * segments, threads,
         plan.bytes(1, 1, threads), rows, per_block, arrays, numbers,
         make_sums(segments));
  return sums;
}

// The arrays, and the view for which they are put together. There is no grad
// in a forward pass.
template <typename scalar_t>
View prepare(const Seen& seen, const Array& grad, bool single_unit,
             PwluArrays<scalar_t>* arrays) {
  arrays->x = {const_data<scalar_t>(seen.x.tensor), seen.x.steps};
  arrays->out = {mutable_data<scalar_t>(seen.out.tensor), seen.out.steps};
  arrays->grad = {nullptr, seen.x.steps};
  if (grad.tensor.defined()) {
    arrays->grad = {const_data<scalar_t>(grad.tensor), grad.steps};
  }
  return merge_samples(
      seen.view, single_unit,
      {&arrays->x.steps, &arrays->grad.steps, &arrays->out.steps});
}

at::Tensor pwlu_cuda(const at::Tensor& input, const at::Tensor& points,
                     const at::Tensor& left_bound,
                     const at::Tensor& right_bound,
                     const at::Tensor& left_slope,
                     const at::Tensor& right_slope) {
  check_pwlu(input, points, left_bound, right_bound, left_slope, right_slope);
  const DeviceGuard guard(input.device());
  const Seen seen(input);
  if (input.numel() == 0) return seen.result();
  const at::Tensor given[] = {points, left_bound, right_bound, left_slope,
                              right_slope};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "pwlu", [&] {
        const PwluParameters<math_t<scalar_t>> parameters(given);
        PwluArrays<scalar_t> arrays;
        const View view = prepare(seen, {}, parameters.units == 1, &arrays);
        pwlu_run<Pass::kForward>(arrays, view, parameters);
      });
  return seen.result();
}

Gradients<6> pwlu_backward_cuda(
    const at::Tensor& grad_output, const at::Tensor& input,
    const at::Tensor& points, const at::Tensor& left_bound,
    const at::Tensor& right_bound, const at::Tensor& left_slope,
    const at::Tensor& right_slope, Asked<6> asked) {
  check_pwlu(input, points, left_bound, right_bound, left_slope, right_slope);
  const DeviceGuard guard(input.device());
  const Seen seen(input);
  const Array grad = seen.like(grad_output, "the gradient");
  const at::Tensor given[] = {points, left_bound, right_bound, left_slope,
                              right_slope};
  const bool all = std::any_of(asked.begin() + 1, asked.end(),
                               [](bool one) { return one; });
  at::Tensor to[5];
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "pwlu_backward", [&] {
        using T = math_t<scalar_t>;
        const PwluParameters<T> parameters(given);
        PwluTargets<T> targets{};
        for (int i = 0; i < 5; ++i) {
          if (!asked[1 + i]) continue;
          auto size = given[i].sizes().vec();
          size[0] = parameters.units;
          to[i] = at::empty(size, parameters.held[i].options());
          targets.data[i] = mutable_data<T>(to[i]);
        }
        if (input.numel() == 0) {
          for (at::Tensor& gradient : to) {
            if (gradient.defined()) gradient.zero_();
          }
          return;
        }
        PwluArrays<scalar_t> arrays;
        const View view = prepare(seen, grad, parameters.units == 1, &arrays);
        if (!all) {
          pwlu_run<Pass::kSlope>(arrays, view, parameters);
          return;
        }
        const at::Tensor sums = pwlu_run<Pass::kAll>(arrays, view, parameters);
        // A single unit whose channels were not put together sums over them.
        const int64_t segments =
            sums.size(0) * sums.size(1) / parameters.units;
        const int64_t width = sums.size(2);
        const int threads = sum_threads(segments, width);
        launch(pwlu_finish<T>, parameters.units, threads,
               std::max<int64_t>(threads, width) * sizeof(double),
               const_data<T>(sums), segments, parameters.numbers, targets);
      });
  for (int i = 0; i < 5; ++i) to[i] = fit(to[i], given[i]);
  return {asked[0] ? seen.result() : at::Tensor(),
          to[0],
          to[1],
          to[2],
          to[3],
          to[4]};
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, MM_ACON_DEVICE, m) {
  m.impl("pwlu", pwlu_cuda);
  m.impl("pwlu_backward", pwlu_backward_cuda);
}

}  // namespace mm_acon
