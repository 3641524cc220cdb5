// The mean over the map, of which there is a kernel for the CPU alone.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(mm_acon, m) {
  m.def("spatial_mean(Tensor x) -> Tensor");
}
