// The mean over all places of a sample and channel. For the CPU alone:
// PyTorch's own copies half and bfloat16 to float before it adds them up.
#include <torch/library.h>

#include <vector>

#include "tiles.h"

namespace mm_acon {
namespace {

template <typename S>
MM_ACON_CLONES void add_row(const S* x, int n, double* sum) {
  math_t<S> here = 0;
#pragma omp simd reduction(+ : here)
  for (int i = 0; i < n; ++i) here += widened(x[i]);
  *sum += here;
}

// Of so many places the n channels.
template <typename S>
MM_ACON_CLONES void add_places(const S* x, int64_t step, int places, int n,
                               double* sums) {
  alignas(kCacheLine) math_t<S> here[kWidth];
  while (places > 0) {
    std::fill(here, here + n, math_t<S>(0));
    const int count = std::min(kRowsAtOnce, places);
    for (int place = 0; place < count; ++place, x += step) {
#pragma omp simd
      for (int i = 0; i < n; ++i) here[i] += widened(x[i]);
    }
    for (int i = 0; i < n; ++i) sums[i] += here[i];
    places -= count;
  }
}

at::Tensor spatial_mean_cpu(const at::Tensor& input) {
  check_input(input);
  const Seen seen(input, /*with_output=*/false);
  const View& view = seen.view;
  const int64_t rows = view.samples * view.channels;
  at::Tensor result =
      at::empty({view.samples, view.channels},
                input.options().memory_format(at::MemoryFormat::Contiguous));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "spatial_mean", [&] {
        const Tiles tiles(view, kWidth);
        std::vector<double> sums(tiles.chunks * rows);
        const scalar_t* x = const_data<scalar_t>(seen.x.tensor);
        const Steps steps = seen.x.steps;
        tiles.for_patches([&](const Patch& patch) {
          const scalar_t* from = x + patch.in(steps);
          double* to = sums.data() + patch.chunk * rows +
                       patch.sample * view.channels + patch.channel;
          if (!patch.channels_last) return add_row(from, patch.length, to);
          add_places(from, steps.place, patch.length, patch.rows, to);
        });
        scalar_t* means = mutable_data<scalar_t>(result);
        for (int64_t row = 0; row < rows; ++row) {
          double sum = 0;
          for (int64_t chunk = 0; chunk < tiles.chunks; ++chunk) {
            sum += sums[chunk * rows + row];
          }
          means[row] = static_cast<scalar_t>(sum / view.inner);
        }
      });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, CPU, m) {
  m.impl("spatial_mean", spatial_mean_cpu);
}

}  // namespace mm_acon
