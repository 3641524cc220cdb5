// How CUDA kernels walk over a tensor, and how they are launched.
//
// Contiguous memory is walked row by row (the elements of one sample and
// channel), channels_last memory pixel by pixel. What a thread, and a block,
// sums up depends on the shape alone, so sums are equal to the last bit in
// every run.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "../common.h"
#include "runtime.cuh"

namespace mm_acon {

// What a kernel computes: y; dx alone; dx and what the parameters get.
enum class Pass { kForward, kSlope, kAll };

constexpr int kWarp = 32;
// Threads that are to run on a multiprocessor at once, at least: room for 80
// registers each. Without a number, ptxas would rather spill some of them than
// let fewer threads run than there could.
constexpr int kResident = 768;
constexpr unsigned kAllLanes = 0xffffffff;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// V numbers that are loaded and stored at once.
template <typename T, int V>
struct alignas(V * sizeof(T)) Vector {
  T at[V];

  // at[e] for arithmetic. bfloat16 is the upper half of a float: taken from
  // the register that holds two, which else would be split when loaded.
  __device__ __forceinline__ math_t<T> number(int e) const {
    if constexpr (std::is_same_v<T, c10::BFloat16> && V > 1) {
      uint32_t pair;
      std::memcpy(&pair, &at[e & ~1], sizeof(pair));
      pair = e & 1 ? pair & 0xffff0000 : pair << 16;
      float result;
      std::memcpy(&result, &pair, sizeof(result));
      return result;
    } else {
      return at[e];
    }
  }
};

template <typename T>
constexpr int kVector = 16 / sizeof(T);  // of a row
template <typename T>
constexpr int kChannels = std::min(4, kVector<T>);  // of a pixel

template <int V, typename T>
__device__ __forceinline__ Vector<std::remove_const_t<T>, V> load(T* from,
                                                                  int64_t at) {
  return read(
      reinterpret_cast<const Vector<std::remove_const_t<T>, V>*>(from + at));
}

// The compiler stores the elements one by one unless it knows of the
// alignment.
template <int V, typename T>
__device__ __forceinline__ void store(T* to, int64_t at,
                                      const Vector<T, V>& vector) {
  using Stored = Vector<T, V>;
  write(
      static_cast<Stored*>(__builtin_assume_aligned(to + at, sizeof(Stored))),
      vector);
}

// An array on the device.
template <typename T>
struct Elements {
  T* data = nullptr;
  Steps steps{};
};

// Reads and writes an array from a chunk of a row on, or from a place of a
// channel on: element i, or V channels of place i.
template <typename T, bool kPixels>
struct Cursor {
  __device__ __forceinline__ void enter(const Elements<T>& array,
                                        int64_t sample, int64_t channel,
                                        int64_t place) {
    data = array.data + array.steps.to(sample, channel, place);
    if constexpr (kPixels) step = static_cast<int>(array.steps.place);
  }

  __device__ __forceinline__ int64_t offset(int i) const {
    if constexpr (kPixels) return int64_t{i} * step;
    return i;
  }

  template <int V>
  __device__ __forceinline__ auto load(int i) const {
    return mm_acon::load<V>(data, offset(i));
  }

  template <int V>
  __device__ __forceinline__ void store(int i, const Vector<T, V>& v) const {
    mm_acon::store(data, offset(i), v);
  }

  // Elements up to the first that a vector can start with.
  template <int V>
  __device__ __forceinline__ int head() const {
    const auto index = reinterpret_cast<uintptr_t>(data) / sizeof(T);
    return static_cast<int>(-index & (V - 1));
  }

  T* data;
  int step;
};

// Has body load and compute the vectors first, first + step, ... below count,
// with first < step; vector i lies at i * stride. Several are loaded before
// the first is used, so that the memory always has work. As long as there are
// enough for all threads, that is done without branches, so that the compiler
// can mix the vectors' instructions.
template <int V, typename Body>
__device__ __forceinline__ void walk(Body& body, int stride, int first,
                                     int count, int step) {
  constexpr int kInFlight =
      std::clamp<int>(Body::kInFlight / (V * Body::kBytes), 1, 8);
  const int jump = step * stride;
  int at = first * stride;
  const auto batch = [&](auto whole, int left) {
    typename Body::template Loaded<V> loaded[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (decltype(whole)::value || u * step < left) {
        loaded[u] = body.template load<V>(at + u * jump);
      }
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u, at += jump) {
      if (decltype(whole)::value || u * step < left) {
        body.template apply<V>(loaded[u], at);
      }
    }
  };
  for (; count >= kInFlight * step; count -= kInFlight * step) {
    batch(std::true_type(), count);
  }
  if (first < count) batch(std::false_type(), count - first);
}

// Contiguous memory: rows cut into chunks, each of which is walked by a warp,
// or by fewer lanes where rows are short.
struct Rows {
  Rows(const View& view, int64_t longest, int vector)
      : samples(view.samples),
        channels(view.channels),
        inner(view.inner),
        length(static_cast<int>(chunk_length(inner, longest, vector))),
        chunks(ceil_div(inner, length)) {
    const int64_t vectors = ceil_div(std::min<int64_t>(inner, length), vector);
    while (lanes() < kWarp && lanes() < vectors) ++log2_lanes;
  }

  // Chunks of about equal length, and of whole rounds of a warp's vectors
  // where there are several: in 56x56 as four of 784 halves a quarter of the
  // last round's lanes would work.
  static int64_t chunk_length(int64_t inner, int64_t longest, int vector) {
    const int64_t chunks = ceil_div(inner, longest);
    const int64_t round = chunks == 1 ? 16 : kWarp * vector;
    return ceil_div(ceil_div(inner, chunks), round) * round;
  }

  MM_ACON_HD int lanes() const { return 1 << log2_lanes; }

  __device__ __forceinline__ int lane() const {
    return threadIdx.x & (lanes() - 1);
  }

  // A chunk whose ends are not aligned starts and ends with single elements.
  // So does all of it where the arrays are not aligned alike.
  template <int V, typename Body>
  __device__ __forceinline__ void walk(Body& body, int64_t sample,
                                       int64_t channel, int64_t chunk) const {
    const int64_t from = chunk * length, left = inner - from;
    const int size = left < length ? static_cast<int>(left) : length;
    body.enter(sample, channel, from);
    int head = body.template head<V>();
    head = head < size ? head : size;
    body.advance(head);
    const int vectors = (size - head) / V, single = size - vectors * V;
    const auto at = [&](int i) {
      return i < head ? i - head : i - head + vectors * V;
    };
    int i = lane();
    typename Body::template Loaded<1> loaded;
    if (i < single) loaded = body.template load<1>(at(i));
    mm_acon::walk<V>(body, V, lane(), vectors, lanes());
    while (i < single) {
      body.template apply<1>(loaded, at(i));
      i += lanes();
      if (i < single) loaded = body.template load<1>(at(i));
    }
  }

  int64_t samples, channels, inner;
  int length;
  int64_t chunks;
  int log2_lanes = 0;
};

// channels_last memory: a lane owns `vector` neighbouring channels. Up to 32
// such groups are a tile, and the lanes of a warp cover one pixel of a tile,
// or several where there are few groups. A block walks a chunk of the pixels
// of one sample.
struct Pixels {
  Pixels(const View& view, int vector, int warps, int64_t longest)
      : samples(view.samples), channels(view.channels), inner(view.inner) {
    const int64_t groups = ceil_div(channels, vector);
    tiles = ceil_div(groups, kWarp);
    width = static_cast<int>(ceil_div(groups, tiles));
    per_warp = kWarp / width;
    // At most `longest` pixels for a thread, fewer in small tensors, so that
    // there are blocks for all of the GPU.
    const int step = warps * per_warp;
    const int64_t fair = ceil_div(samples * inner * tiles, 1024 * step);
    length = static_cast<int>(std::clamp<int64_t>(fair, 8, longest) * step);
    chunks = ceil_div(inner, length);
  }

  int64_t blocks() const { return tiles * samples * chunks; }

  int64_t samples, channels, inner, tiles;
  int width, per_warp, length;
  int64_t chunks;
};

// Where a thread stands in Pixels.
template <int K>
struct Place {
  __device__ __forceinline__ explicit Place(const Pixels& pixels)
      : warp(threadIdx.x / kWarp), lane(threadIdx.x % kWarp) {
    const int64_t tile = blockIdx.x % pixels.tiles;
    segment = blockIdx.x / pixels.tiles;
    const int row = lane / pixels.width;
    group = lane - row * pixels.width;
    first_channel = tile * pixels.width * K;
    channel = first_channel + group * K;
    first = warp * pixels.per_warp + row;
    sample = segment / pixels.chunks;
    from = (segment - sample * pixels.chunks) * pixels.length;
    const int64_t left = pixels.inner - from;
    count = left < pixels.length ? static_cast<int>(left) : pixels.length;
    // A lane too many.
    if (row >= pixels.per_warp || channel >= pixels.channels) count = 0;
  }

  template <typename Body>
  __device__ __forceinline__ void walk(Body& body,
                                       const Pixels& pixels) const {
    body.enter(sample, channel < pixels.channels ? channel : 0, from);
    mm_acon::walk<K>(body, 1, first, count,
                     static_cast<int>(blockDim.x / kWarp) * pixels.per_warp);
  }

  int warp, lane, group;  // group: of K channels, within the tile
  int64_t first_channel;  // of the tile
  int64_t channel;        // of the lane
  int64_t segment, sample;
  int64_t from;  // the first place
  int first, count;
};

// Adds over groups of lanes; the first lane of each has the sum.
template <typename T>
__device__ __forceinline__ T sum_lanes(T value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

// A block's sums of the columns of (count, width) numbers, in the first width
// places of buffer, which has at least as many as there are threads.
template <typename T>
__device__ void sum_columns(const T* from, int64_t count, int width,
                            double* buffer) {
  const int threads = blockDim.x, t = threadIdx.x;
  const int columns = width < threads ? width : threads;
  const int rows = threads / columns, row = t / columns;
  if (row < rows) {
    for (int k = t - row * columns; k < width; k += columns) {
      double sum = 0;
#pragma unroll 8
      for (int64_t i = row; i < count; i += rows) sum += from[i * width + k];
      buffer[row * width + k] = sum;
    }
  }
  __syncthreads();
  for (int k = t; k < width; k += threads) {
    double sum = buffer[k];
    for (int i = 1; i < rows; ++i) sum += buffer[i * width + k];
    buffer[k] = sum;
  }
  __syncthreads();
}

// With more of them a thread would have too few registers for pwlu_finish, and
// so it would if more than one block were to be there at once.
constexpr int kSumThreads = 512;

// How many threads sum_columns should have.
inline int sum_threads(int64_t count, int width) {
  return count * width > 8192 ? kSumThreads : 128;
}

// For what depends on the channel alone, samples are put together where all
// arrays let that be: channels_last memory is one sample, as is a batch
// without spatial axes, and for a single unit everything is one row.
inline View merge_samples(const View& view, bool single_unit,
                          std::initializer_list<Steps*> arrays) {
  const auto all = [&](const auto& holds) {
    return std::all_of(arrays.begin(), arrays.end(),
                       [&](const Steps* steps) { return holds(*steps); });
  };
  const auto change = [&](const View& merged, const auto& to) {
    for (Steps* steps : arrays) *steps = to(*steps);
    return merged;
  };
  const int64_t places = view.samples * view.inner;
  if (single_unit && all([&](const Steps& s) {
        const int64_t place = view.channels_last ? view.channels : 1;
        const int64_t channel = view.channels_last ? 1 : view.inner;
        return (view.inner == 1 || s.place == place) &&
               (view.channels == 1 || s.channel == channel) &&
               (view.samples == 1 || s.sample == view.channels * view.inner);
      })) {
    return change({1, 1, view.size(), false},
                  [](const Steps&) { return Steps{0, 0, 1}; });
  }
  if (view.channels_last && all([&](const Steps& s) {
        return view.samples == 1 || s.sample == view.inner * s.place;
      })) {
    return change({1, view.channels, places, true},
                  [](const Steps& s) { return Steps{0, 1, s.place}; });
  }
  if (!view.channels_last && view.inner == 1 && all([&](const Steps& s) {
        return s.channel == 1 || view.channels == 1;
      })) {
    return change({1, view.channels, places, true},
                  [](const Steps& s) { return Steps{0, 1, s.sample}; });
  }
  return view;
}

// Whether lanes of channels_last memory can own `vector` channels each.
template <typename T>
bool owns(const Elements<T>& array, int64_t channels, int vector) {
  const Steps& s = array.steps;
  return array.data == nullptr ||
         (reinterpret_cast<uintptr_t>(array.data) % 32 == 0 &&
          channels % vector == 0 && s.place % vector == 0 &&
          s.sample % vector == 0);
}

// A gradient with a row per unit, in the shape and dtype of its parameter.
// Undefined where it was not asked for.
inline at::Tensor fit(at::Tensor gradient, const at::Tensor& parameter) {
  if (!gradient.defined()) return gradient;
  if (gradient.size(0) != parameter.size(0)) {
    gradient = gradient.sum(0, /*keepdim=*/true);
  }
  return gradient.to(parameter.scalar_type());
}

}  // namespace mm_acon
