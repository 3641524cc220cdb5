#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <tuple>

#include "../acon_math.h"
#include "layout.cuh"

namespace mm_acon {
namespace {

constexpr int kAconThreads = 256;
constexpr int64_t kAconChunk = 4096, kAconPixels = 32;

// beta and dbeta where beta is one number per element.
template <typename scalar_t>
struct AconArrays {
  Elements<const scalar_t> x, grad;
  Elements<scalar_t> out;  // y or dx
  Elements<const math_t<scalar_t>> beta;
  Elements<math_t<scalar_t>> dbeta;
};

// What one thread computes. Sums are of g x G (for p1), g x, and g df/dbeta.
// kUnits: 1, or a unit per element of a vector.
template <typename scalar_t, bool kPixels, int kUnits, bool kElement,
          Pass kPass>
struct AconBody {
  using T = math_t<scalar_t>;
  static constexpr bool kBackward = kPass != Pass::kForward;
  static constexpr bool kAll = kPass == Pass::kAll;
  // Bytes that a thread has on their way, and those of an element.
  static constexpr int kInFlight = kBackward ? 32 : 64;
  static constexpr int kBytes =
      (kBackward ? 2 : 1) * sizeof(scalar_t) + (kElement ? sizeof(T) : 0);

  template <int V>
  struct Loaded {
    Vector<scalar_t, V> x, grad;
    Vector<T, V> beta;
  };

  // At a place of a channel, from which on elements are counted.
  __device__ __forceinline__ void enter(int64_t sample, int64_t channel,
                                        int64_t place) {
    x.enter(arrays.x, sample, channel, place);
    out.enter(arrays.out, sample, channel, place);
    if constexpr (kBackward) grad.enter(arrays.grad, sample, channel, place);
    if constexpr (kElement) {
      beta_here.enter(arrays.beta, sample, channel, place);
      if constexpr (kAll) dbeta.enter(arrays.dbeta, sample, channel, place);
    }
  }

  __device__ __forceinline__ void advance(int elements) {
    x.data += elements;
    out.data += elements;
    if constexpr (kBackward) grad.data += elements;
    if constexpr (kElement) {
      beta_here.data += elements;
      if constexpr (kAll) dbeta.data += elements;
    }
  }

  // Elements up to the first vector, more than there are if there is none.
  template <int V>
  __device__ __forceinline__ int head() const {
    const int found = out.template head<V>();
    bool alike = x.template head<V>() == found;
    if constexpr (kBackward) alike &= grad.template head<V>() == found;
    if constexpr (kElement) {
      alike &= beta_here.template head<V>() == found;
      if constexpr (kAll) alike &= dbeta.template head<V>() == found;
    }
    return alike ? found : std::numeric_limits<int>::max();
  }

  __device__ __forceinline__ AconBody(const AconArrays<scalar_t>& arrays,
                                      const AconView<T>& numbers,
                                      int64_t sample, int64_t channel)
      : arrays(arrays) {
#pragma unroll
    for (int k = 0; k < kUnits; ++k) {
      const int64_t c = channel + k;
      p2[k] = numbers.low(c);
      d[k] = numbers.difference(c);
      if constexpr (!kElement) beta[k] = *numbers.beta_of(sample, c);
    }
  }

  template <int V>
  __device__ __forceinline__ Loaded<V> load(int at) const {
    Loaded<V> loaded;
    loaded.x = x.template load<V>(at);
    if constexpr (kBackward) loaded.grad = grad.template load<V>(at);
    if constexpr (kElement) loaded.beta = beta_here.template load<V>(at);
    return loaded;
  }

  template <int V>
  __device__ __forceinline__ void apply(const Loaded<V>& loaded, int at) {
    Vector<scalar_t, V> result;
    Vector<T, V> to_beta;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const int k = kUnits == 1 ? 0 : e;
      const T value = loaded.x.number(e);
      const T b = kElement ? loaded.beta.at[e] : beta[k];
      if constexpr (kBackward) {
        const T g = loaded.grad.number(e);
        const AconSlopes<T> slopes = acon_slopes(value, d[k], p2[k], b);
        result.at[e] = g * slopes.x;
        if constexpr (kAll) {
          sums[0][k] += g * slopes.p1;
          sums[1][k] += g * value;
          if constexpr (kElement) {
            to_beta.at[e] = g * slopes.beta;
          } else {
            sums[2][k] += g * slopes.beta;
          }
        }
      } else {
        result.at[e] = acon(value, d[k], p2[k], b);
      }
    }
    out.store(at, result);
    if constexpr (kElement && kAll) dbeta.store(at, to_beta);
  }

  const AconArrays<scalar_t>& arrays;
  Cursor<const scalar_t, kPixels> x, grad;
  Cursor<scalar_t, kPixels> out;
  Cursor<const T, kPixels> beta_here;
  Cursor<T, kPixels> dbeta;
  T d[kUnits], p2[kUnits], beta[kUnits], sums[3][kUnits] = {};
};

// sums: (C, N * chunks, 3).
template <typename scalar_t, bool kElement, Pass kPass>
__global__ void __launch_bounds__(kAconThreads, kResident / kAconThreads)
    acon_rows(Rows rows, AconArrays<scalar_t> arrays,
              AconView<math_t<scalar_t>> numbers, math_t<scalar_t>* sums) {
  const int64_t index =
      (static_cast<int64_t>(blockIdx.x) * kAconThreads + threadIdx.x) >>
      rows.log2_lanes;
  const int64_t row = index / rows.chunks, chunk = index - row * rows.chunks;
  const int64_t sample = row / rows.channels;
  const int64_t channel = row - sample * rows.channels;
  const bool exists = sample < rows.samples;
  // A lane without a chunk takes part in the sums of its warp.
  AconBody<scalar_t, false, 1, kElement, kPass> body(
      arrays, numbers, exists ? sample : 0, exists ? channel : 0);
  if (exists) rows.walk<kVector<scalar_t>>(body, sample, channel, chunk);
  if constexpr (kPass == Pass::kAll) {
    const int64_t segments = rows.samples * rows.chunks;
    sums += (channel * segments + sample * rows.chunks + chunk) * 3;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const auto sum = sum_lanes(body.sums[i][0], rows.lanes());
      if (exists && rows.lane() == 0) sums[i] = sum;
    }
  }
}

template <typename scalar_t, int K, bool kElement, Pass kPass>
__global__ void __launch_bounds__(kAconThreads, kResident / kAconThreads)
    acon_pixels(Pixels pixels, AconArrays<scalar_t> arrays,
                AconView<math_t<scalar_t>> numbers, math_t<scalar_t>* sums) {
  using T = math_t<scalar_t>;
  const Place<K> place(pixels);
  // Lanes without channels compute nothing, with the first channel's numbers.
  AconBody<scalar_t, true, K, kElement, kPass> body(
      arrays, numbers, place.sample,
      place.channel < pixels.channels ? place.channel : 0);
  place.walk(body, pixels);
  if constexpr (kPass == Pass::kAll) {
    T* shared = static_cast<T*>(shared_memory());  // [3][K][threads]
#pragma unroll
    for (int i = 0; i < 3 * K; ++i) {
      shared[i * kAconThreads + threadIdx.x] = body.sums[i / K][i % K];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 3 * K * pixels.width; i += kAconThreads) {
      const int which = i / pixels.width, group = i - which * pixels.width;
      const int64_t c = place.first_channel + group * K + which % K;
      if (c >= pixels.channels) continue;
      const T* from = shared + which * kAconThreads + group;
      T sum = 0;
      for (int warp = 0; warp < kAconThreads; warp += kWarp) {
        for (int row = 0; row < pixels.per_warp; ++row) {
          sum += from[warp + row * pixels.width];
        }
      }
      const int64_t segments = pixels.samples * pixels.chunks;
      sums[(c * segments + place.segment) * 3 + which / K] = sum;
    }
  }
}

// A block per channel. dbeta is (C,), or (N, C) if it is per sample. Null are
// those that are not asked for.
template <typename T>
__global__ void __launch_bounds__(kSumThreads, 1)
    acon_finish(const T* sums, int64_t samples, int64_t chunks,
                bool per_sample, T* dp1, T* dp2, T* dbeta) {
  double* buffer = static_cast<double*>(shared_memory());
  const int64_t c = blockIdx.x, segments = samples * chunks;
  sums += c * segments * 3;
  sum_columns(sums, segments, 3, buffer);
  if (threadIdx.x == 0) {
    if (dp1) dp1[c] = buffer[0];
    if (dp2) dp2[c] = buffer[1] - buffer[0];
    if (dbeta && !per_sample) dbeta[c] = buffer[2];
  }
  if (!dbeta || !per_sample) return;
  for (int64_t n = threadIdx.x; n < samples; n += blockDim.x) {
    double sum = 0;
    for (int64_t i = 0; i < chunks; ++i) sum += sums[(n * chunks + i) * 3 + 2];
    dbeta[n * gridDim.x + c] = sum;
  }
}

// One pass; there is no grad in a forward one. Writes y or dx to seen.out and
// gives the parameters' gradients.
template <typename scalar_t, Pass kPass>
Gradients<3> acon_run(const Seen& seen, const Array& grad,
                      const at::Tensor& p1, const at::Tensor& p2,
                      const at::Tensor& beta, const Asked<4>& asked) {
  using T = math_t<scalar_t>;
  constexpr bool kBackward = kPass != Pass::kForward;
  constexpr bool kAll = kPass == Pass::kAll;
  const AconParameters<T> parameters(p1, p2, beta, seen);
  const AconView<T>& numbers = parameters.numbers;
  const bool per_element = parameters.kind == BetaKind::kElement;
  const bool per_sample = parameters.kind == BetaKind::kSample;
  const bool single_unit =
      p1.size(0) == 1 && p2.size(0) == 1 && (per_element || beta.size(0) == 1);

  AconArrays<scalar_t> arrays;
  arrays.x = {const_data<scalar_t>(seen.x.tensor), seen.x.steps};
  arrays.out = {mutable_data<scalar_t>(seen.out.tensor), seen.out.steps};
  arrays.grad = {nullptr, seen.x.steps};
  if (kBackward) arrays.grad = {const_data<scalar_t>(grad.tensor), grad.steps};
  arrays.beta = {nullptr, seen.x.steps};
  arrays.dbeta = {nullptr, seen.out.steps};
  at::Tensor dbeta;
  if (per_element) {
    arrays.beta = {numbers.beta, parameters.steps};
    if (kAll) {
      dbeta = at::empty_like(seen.out.tensor, parameters.held[2].options());
      arrays.dbeta.data = mutable_data<T>(dbeta);
    }
  }
  const View view = per_sample
                        ? seen.view
                        : merge_samples(seen.view, single_unit,
                                        {&arrays.x.steps, &arrays.grad.steps,
                                         &arrays.out.steps, &arrays.beta.steps,
                                         &arrays.dbeta.steps});
  const auto own = [&](int vector) {
    return owns(arrays.x, view.channels, vector) &&
           owns(arrays.grad, view.channels, vector) &&
           owns(arrays.out, view.channels, vector) &&
           owns(arrays.beta, view.channels, vector) &&
           owns(arrays.dbeta, view.channels, vector);
  };

  at::Tensor sums;
  int64_t chunks;
  const auto make_sums = [&]() -> T* {
    if (!kAll) return nullptr;
    sums = at::empty({view.channels, view.samples * chunks, 3},
                     parameters.held[0].options());
    return mutable_data<T>(sums);
  };
  const auto run_pixels = [&](auto vector, auto element) {
    constexpr int K = decltype(vector)::value;
    const Pixels pixels(view, K, kAconThreads / kWarp, kAconPixels);
    chunks = pixels.chunks;
    launch(acon_pixels<scalar_t, K, decltype(element)::value, kPass>,
           pixels.blocks(), kAconThreads,
           kAll ? 3 * K * kAconThreads * sizeof(T) : 0, pixels, arrays,
           numbers, make_sums());
  };
  const auto run = [&](auto element) {
    if (!view.channels_last) {
      const Rows rows(view, kAconChunk, kVector<scalar_t>);
      chunks = rows.chunks;
      launch(acon_rows<scalar_t, decltype(element)::value, kPass>,
             ceil_div(view.samples * view.channels * chunks * rows.lanes(),
                      kAconThreads),
             kAconThreads, 0, rows, arrays, numbers, make_sums());
    } else if (own(kChannels<scalar_t>)) {
      run_pixels(std::integral_constant<int, kChannels<scalar_t>>(), element);
    } else {
      run_pixels(std::integral_constant<int, 1>(), element);
    }
  };
  if (per_element) {
    run(std::true_type());
  } else {
    run(std::false_type());
  }
  if (!kAll) return {};

  at::Tensor to_p1, to_p2, to_beta;
  const auto make = [&](at::Tensor& gradient, bool wanted,
                        int64_t rows) -> T* {
    if (!wanted) return nullptr;
    gradient = at::empty({rows * view.channels}, sums.options());
    return mutable_data<T>(gradient);
  };
  T* const p1_data = make(to_p1, asked[1], 1);
  T* const p2_data = make(to_p2, asked[2], 1);
  T* const beta_data =
      make(to_beta, asked[3] && !per_element, per_sample ? view.samples : 1);
  if (p1_data || p2_data || beta_data) {
    const int threads = sum_threads(view.samples * chunks, 3);
    launch(acon_finish<T>, view.channels, threads, threads * sizeof(double),
           const_data<T>(sums), view.samples, chunks, per_sample, p1_data,
           p2_data, beta_data);
  }
  if (per_element) {
    to_beta = seen.result(dbeta.to(beta.scalar_type()));
  } else if (per_sample && asked[3]) {
    to_beta = to_beta.view({view.samples, view.channels});
    if (beta.size(1) != view.channels) to_beta = to_beta.sum(1, true);
    to_beta = to_beta.to(beta.scalar_type());
  } else {
    to_beta = fit(to_beta, beta);
  }
  return {fit(to_p1, p1), fit(to_p2, p2), to_beta};
}

at::Tensor acon_cuda(const at::Tensor& input, const at::Tensor& p1,
                     const at::Tensor& p2, const at::Tensor& beta) {
  check_acon(input, p1, p2, beta);
  const DeviceGuard guard(input.device());
  const Seen seen(input);
  if (input.numel() == 0) return seen.result();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "acon",
      [&] { acon_run<scalar_t, Pass::kForward>(seen, {}, p1, p2, beta, {}); });
  return seen.result();
}

Gradients<4> acon_backward_cuda(const at::Tensor& grad_output,
                                const at::Tensor& input, const at::Tensor& p1,
                                const at::Tensor& p2, const at::Tensor& beta,
                                Asked<4> asked) {
  check_acon(input, p1, p2, beta);
  const DeviceGuard guard(input.device());
  const Seen seen(input);
  const Array grad = seen.like(grad_output, "the gradient");
  Gradients<3> to;
  if (input.numel() == 0) {
    const auto zeros = [](const at::Tensor& parameter, bool wanted) {
      return wanted ? at::zeros(parameter.sizes(), parameter.options())
                    : at::Tensor();
    };
    to = {zeros(p1, asked[1]), zeros(p2, asked[2]), zeros(beta, asked[3])};
  } else {
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, input.scalar_type(), "acon_backward", [&] {
          to = asked[1] || asked[2] || asked[3]
                   ? acon_run<scalar_t, Pass::kAll>(seen, grad, p1, p2, beta,
                                                    asked)
                   : acon_run<scalar_t, Pass::kSlope>(seen, grad, p1, p2, beta,
                                                      asked);
        });
  }
  auto& [to_p1, to_p2, to_beta] = to;
  return {asked[0] ? seen.result() : at::Tensor(), to_p1, to_p2,
          asked[3] ? to_beta : at::Tensor()};
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, MM_ACON_DEVICE, m) {
  m.impl("acon", acon_cuda);
  m.impl("acon_backward", acon_backward_cuda);
}

}  // namespace mm_acon
