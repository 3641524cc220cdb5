#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "../pwlu_math.h"
#include "layout.cuh"

namespace mm_acon {
namespace {

constexpr int kForwardThreads = 256, kBackwardThreads = 128;
// A warp's chunk of a row, and the elements that a block covers.
constexpr int64_t kPwluChunk = 1024, kBlockElements = 16384;
// Pixels for a thread.
constexpr int64_t kForwardPixels = 32, kBackwardPixels = 128;
// Shared memory of a block, so that four fit on a multiprocessor.
constexpr int64_t kShared = 56 * 1024;

// The pieces of one channel in shared memory, kStride apart: the tables of
// several channels lie side by side, so that every lane of a warp reads from
// its own bank. With kStride = 1 all lanes share a table, and 3 numbers a
// piece put up to 32 pieces in different banks. After the last piece stands a
// knot that is NaN, past which no x lies; then 1 / length.
template <typename T, int kStride>
struct PwluTable {
  PwluTable() = default;

  __device__ __forceinline__ PwluTable(const T* numbers, int pieces)
      : numbers(numbers),
        left(numbers[0]),
        inverse_length(numbers[(3 * pieces + 1) * kStride]),
        last(pieces - 1) {}

  // As PwluPieces::find.
  __device__ __forceinline__ int find(T x) const {
    const int j = pwlu_index((x - left) * inverse_length + T(0.5), last);
    return j + (x >= numbers[(j + 1) * 3 * kStride]);
  }

  __device__ __forceinline__ PwluPiece<T> piece(int j) const {
    const T* from = numbers + j * 3 * kStride;
    return {from[0], from[kStride], from[2 * kStride]};
  }

  __device__ __forceinline__ T value(T x) const {
    return piece(find(x)).value(x);
  }

  const T* numbers;
  T left, inverse_length;
  int last;
};

// The five parameters, in the operator's order, and the steps from unit to
// unit: 0 where all share a row.
template <typename T>
struct PwluNumbers {
  const T* data[5];
  int64_t step[5];
  int pieces;  // N + 2

  MM_ACON_HD int table_size() const { return 3 * pieces + 2; }

  __device__ __forceinline__ const T* points(int64_t index) const {
    return data[0] + index * step[0];
  }

  __device__ __forceinline__ PwluUnit<T> unit(int64_t index) const {
    return {data[1][index * step[1]], data[2][index * step[2]],
            data[3][index * step[3]], data[4][index * step[4]], pieces - 2};
  }

  // Every by-th piece from the first on.
  template <int kStride>
  __device__ __forceinline__ void fill(int64_t index, T* to, int first,
                                       int by) const {
    const PwluUnit<T> unit = this->unit(index);
    for (int j = first; j < pieces; j += by) {
      const PwluPiece<T> piece = unit.piece(points(index), j);
      to[3 * j * kStride] = piece.knot;
      to[(3 * j + 1) * kStride] = piece.start;
      to[(3 * j + 2) * kStride] = piece.slope;
    }
    if (first == 0) {
      to[3 * pieces * kStride] = std::numeric_limits<T>::quiet_NaN();
      to[(3 * pieces + 1) * kStride] = T(1) / unit.length;
    }
  }
};

template <typename scalar_t>
struct PwluArrays {
  const scalar_t* x;
  const scalar_t* grad;
  scalar_t* out;  // y or dx
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
template <typename scalar_t, int kStride, int kUnits, bool kBackward>
struct PwluBody {
  using T = math_t<scalar_t>;
  // Bytes that a thread has on their way, and those of an element.
  static constexpr int kInFlight = kStride == 1 ? 32 : 64;
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
      table[k] = {tables + k * kWarp, pieces};
    }
  }

  template <int V>
  __device__ __forceinline__ Loaded<V> load(int64_t at) const {
    Loaded<V> loaded;
    loaded.x = mm_acon::load<V>(arrays.x, at);
    if constexpr (kBackward) loaded.grad = mm_acon::load<V>(arrays.grad, at);
    return loaded;
  }

  template <int V>
  __device__ __forceinline__ void apply(const Loaded<V>& loaded,
                                        int64_t at) const {
    Vector<scalar_t, V> result;
    Bin<T>* bin[V];
    T from_knot[V];
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const int unit = kUnits == 1 ? 0 : e;
      const T x = loaded.x.number(e);
      if constexpr (kBackward) {
        const int j = table[unit].find(x);
        const PwluPiece<T> piece = table[unit].piece(j);
        result.at[e] = loaded.grad.number(e) * piece.slope;
        from_knot[e] = x - piece.knot;
        bin[e] = bins + (j * kUnits + unit) * threads;
      } else {
        result.at[e] = table[unit].value(x);
      }
    }
    store(arrays.out, at, result);
    if constexpr (kBackward) {
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

  PwluArrays<scalar_t> arrays;
  PwluTable<T, kStride> table[kUnits];
  Bin<T>* bins;  // this thread's first
  int threads;
};

// A block takes `per_block` chunks of the rows of one channel. sums: (C,
// segments, 2 (N + 2)).
template <typename scalar_t, bool kBackward>
__global__ void __launch_bounds__(kBackward ? kBackwardThreads
                                            : kForwardThreads)
    pwlu_rows(Rows rows, int64_t per_block, PwluArrays<scalar_t> arrays,
              PwluNumbers<math_t<scalar_t>> numbers, math_t<scalar_t>* sums) {
  using T = math_t<scalar_t>;
  const int threads = blockDim.x, pieces = numbers.pieces;
  const int64_t segment = blockIdx.x / rows.channels;
  const int64_t channel = blockIdx.x - segment * rows.channels;
  const Shared<T> shared(kBackward ? pieces : 0);
  numbers.template fill<1>(channel, shared.table, threadIdx.x, threads);
  __syncthreads();
  PwluBody<scalar_t, 1, 1, kBackward> body(arrays, shared, shared.table,
                                           pieces);

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

  if constexpr (kBackward) {
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
template <typename scalar_t, int K, bool kBackward>
__global__ void __launch_bounds__(kBackward ? kBackwardThreads
                                            : kForwardThreads)
    pwlu_pixels(Pixels pixels, PwluArrays<scalar_t> arrays,
                PwluNumbers<math_t<scalar_t>> numbers,
                math_t<scalar_t>* sums) {
  using T = math_t<scalar_t>;
  constexpr int kStride = K * kWarp;
  const int threads = blockDim.x, pieces = numbers.pieces;
  const int warps = threads / kWarp;
  const Place<K> place(pixels);
  const Shared<T> shared(kBackward ? K * pieces : 0);
  T* column = shared.table + place.lane;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (place.channel < pixels.channels) {
      numbers.template fill<kStride>(place.channel + k, column + k * kWarp,
                                     place.warp, warps);
    }
  }
  __syncthreads();
  PwluBody<scalar_t, kStride, K, kBackward> body(arrays, shared, column,
                                                 pieces);
  place.walk(body, pixels);

  if constexpr (kBackward) {
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

template <typename T>
struct PwluGradients {
  T* data[5];
};

// A block per unit: the parameters' gradients from the sums of its segments.
template <typename T>
__global__ void __launch_bounds__(1024)
    pwlu_finish(const T* sums, int64_t segments, PwluNumbers<T> numbers,
                PwluGradients<T> to) {
  const int pieces = numbers.pieces, width = 2 * pieces, values = pieces - 1;
  const int64_t index = blockIdx.x;
  double* buffer = static_cast<double*>(shared_memory());
  double* result = buffer + std::max<int>(width, blockDim.x);
  T* table = reinterpret_cast<T*>(result + values + 4);
  const PwluUnit<T> unit = numbers.unit(index);
  PwluPieces<T>::fill(numbers.points(index), unit, table, threadIdx.x,
                      blockDim.x);
  sum_columns(sums + index * segments * width, segments, width, buffer);
  if (threadIdx.x == 0) {
    pwlu_parameter_gradients(buffer, table, unit.clamped, values - 1, result);
#pragma unroll
    for (int i = 1; i < 5; ++i) to.data[i][index] = result[values + i - 1];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < values; i += blockDim.x) {
    to.data[0][index * values + i] = result[i];
  }
}

void check_shared(int64_t bytes, int pieces) {
  if (bytes <= 48 * 1024) return;
  const int64_t limit = shared_limit();
  TORCH_CHECK(
      bytes <= limit, "pwlu with N = ", pieces - 2, " intervals needs ", bytes,
      " bytes of shared memory, and a ", "block on this GPU has ", limit,
      "; write num_intervals=", pieces * limit / bytes - 2, " or less.");
}

// y, or dx and the sums for pwlu_finish.
template <bool kBackward, typename scalar_t>
at::Tensor pwlu_run(const PwluArrays<scalar_t>& arrays, const View& view,
                    const PwluNumbers<math_t<scalar_t>>& numbers,
                    const at::Tensor& x) {
  using T = math_t<scalar_t>;
  const int bins = kBackward ? numbers.pieces : 0;
  const bool vectors = aligned({arrays.x, arrays.grad, arrays.out});
  at::Tensor sums;
  const auto make_sums = [&](int64_t segments) -> T* {
    if (!kBackward) return nullptr;
    sums = at::empty({view.channels, segments, 2 * bins},
                     x.options().dtype(c10::CppTypeToScalarType<T>::value));
    return mutable_data<T>(sums);
  };
  int threads = kBackward ? kBackwardThreads : kForwardThreads;
  // For the bins and tables of `units` channels a thread.
  const auto shared_bytes = [&](int units, int tables) -> int64_t {
    return int64_t{threads} * bins * units * sizeof(Bin<T>) +
           int64_t{tables} * numbers.table_size() * sizeof(T);
  };
  // Fewer threads where many intervals need many bins.
  const auto choose_threads = [&](int units, int tables) {
    while (kBackward && threads > kWarp &&
           shared_bytes(units, tables) > kShared) {
      threads /= 2;
    }
    check_shared(shared_bytes(units, tables), numbers.pieces);
    return shared_bytes(units, tables);
  };
  const auto run_pixels = [&](auto vector) {
    constexpr int K = decltype(vector)::value;
    const int64_t shared = choose_threads(K, K * kWarp);
    const Pixels pixels(view, K, threads / kWarp,
                        kBackward ? kBackwardPixels : kForwardPixels);
    launch(pwlu_pixels<scalar_t, K, kBackward>, pixels.blocks(), threads,
           shared, pixels, arrays, numbers, make_sums(pixels.chunks));
  };
  if (view.channels_last) {
    constexpr int K =
        kBackward ? std::min(2, kChannels<scalar_t>) : kChannels<scalar_t>;
    if (vectors && view.channels % K == 0 &&
        shared_bytes(K, K * kWarp) <= kShared) {
      run_pixels(std::integral_constant<int, K>());
    } else {
      run_pixels(std::integral_constant<int, 1>());
    }
    return sums;
  }
  const int64_t shared = choose_threads(1, 1);
  const Rows rows(view, kPwluChunk, kVector<scalar_t>, vectors);
  // Whole rounds of the block's groups of lanes, fewer in small tensors.
  const int64_t groups = threads / rows.lanes();
  const int64_t count = view.samples * rows.chunks;
  const int64_t most = ceil_div(
      kBlockElements, groups * std::min<int64_t>(view.inner, rows.length));
  const int64_t fair = ceil_div(count * view.channels, groups * 1024);
  const int64_t per_block = groups * std::min(most, fair);
  const int64_t segments = ceil_div(count, per_block);
  launch(pwlu_rows<scalar_t, kBackward>, view.channels * segments, threads,
         shared, rows, per_block, arrays, numbers, make_sums(segments));
  return sums;
}

// The parameters as T, and the units: channels that have numbers of their
// own, or all channels as one.
template <typename T>
struct PwluParameters {
  explicit PwluParameters(const at::Tensor* given) {
    for (int i = 0; i < 5; ++i) {
      held[i] = given[i].to(c10::CppTypeToScalarType<T>::value).contiguous();
      numbers.data[i] = const_data<T>(held[i]);
      numbers.step[i] = held[i].size(0) == 1 ? 0 : held[i].stride(0);
      units = std::max(units, held[i].size(0));
    }
    numbers.pieces = static_cast<int>(held[0].size(1) + 1);
  }

  at::Tensor held[5];
  int64_t units = 1;
  PwluNumbers<T> numbers;
};

at::Tensor pwlu_cuda(const at::Tensor& input, const at::Tensor& points,
                     const at::Tensor& left_bound,
                     const at::Tensor& right_bound,
                     const at::Tensor& left_slope,
                     const at::Tensor& right_slope) {
  check_pwlu(input, points, left_bound, right_bound, left_slope, right_slope);
  const DeviceGuard guard(input.device());
  at::Tensor x;
  View shape;
  std::tie(x, shape) = dense(input);
  const at::Tensor y = at::empty_like(x);
  if (x.numel() == 0) return y;
  const at::Tensor given[] = {points, left_bound, right_bound, left_slope,
                              right_slope};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "pwlu", [&] {
        const PwluParameters<math_t<scalar_t>> parameters(given);
        const PwluArrays<scalar_t> arrays{const_data<scalar_t>(x), nullptr,
                                          mutable_data<scalar_t>(y)};
        pwlu_run<false>(arrays, merge_samples(shape, parameters.units == 1),
                        parameters.numbers, x);
      });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor>
pwlu_backward_cuda(const at::Tensor& grad_output, const at::Tensor& input,
                   const at::Tensor& points, const at::Tensor& left_bound,
                   const at::Tensor& right_bound, const at::Tensor& left_slope,
                   const at::Tensor& right_slope) {
  check_pwlu(input, points, left_bound, right_bound, left_slope, right_slope);
  const DeviceGuard guard(input.device());
  at::Tensor x;
  View shape;
  std::tie(x, shape) = dense(input);
  const at::Tensor grad = like(grad_output, x, shape);
  const at::Tensor dx = at::empty_like(x);
  const at::Tensor given[] = {points, left_bound, right_bound, left_slope,
                              right_slope};
  at::Tensor to[5];
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "pwlu_backward", [&] {
        using T = math_t<scalar_t>;
        const PwluParameters<T> parameters(given);
        const PwluNumbers<T>& numbers = parameters.numbers;
        PwluGradients<T> gradients;
        for (int i = 0; i < 5; ++i) {
          auto size = given[i].sizes().vec();
          size[0] = parameters.units;
          to[i] = at::empty(size, parameters.held[i].options());
          gradients.data[i] = mutable_data<T>(to[i]);
        }
        if (x.numel() == 0) {
          for (at::Tensor& gradient : to) gradient.zero_();
        } else {
          const PwluArrays<scalar_t> arrays{const_data<scalar_t>(x),
                                            const_data<scalar_t>(grad),
                                            mutable_data<scalar_t>(dx)};
          const at::Tensor sums = pwlu_run<true>(
              arrays, merge_samples(shape, parameters.units == 1), numbers, x);
          const int64_t segments = sums.size(1), width = sums.size(2);
          const int threads = sum_threads(segments, width);
          const int64_t shared =
              (std::max<int64_t>(threads, width) + numbers.pieces + 3) *
                  sizeof(double) +
              numbers.table_size() * sizeof(T);
          check_shared(shared, numbers.pieces);
          launch(pwlu_finish<T>, parameters.units, threads, shared,
                 const_data<T>(sums), segments, numbers, gradients);
        }
      });
  for (int i = 0; i < 5; ++i) to[i] = fit(to[i], given[i]);
  return {dx, to[0], to[1], to[2], to[3], to[4]};
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, MM_ACON_DEVICE, m) {
  m.impl("pwlu", pwlu_cuda);
  m.impl("pwlu_backward", pwlu_backward_cuda);
}

}  // namespace mm_acon
