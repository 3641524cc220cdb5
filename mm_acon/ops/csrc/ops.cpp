// The schemas of the operators, and nothing else: each kernel registers
// itself at the foot of the file that implements it.
#include <torch/library.h>

#define PWLU_PARAMETERS                                    \
  "Tensor points, Tensor left_bound, Tensor right_bound, " \
  "Tensor left_slope, Tensor right_slope"

TORCH_LIBRARY(mm_acon, m) {
  m.def("acon(Tensor x, Tensor p1, Tensor p2, Tensor beta) -> Tensor");
  m.def(
      "acon_backward(Tensor grad, Tensor x, Tensor p1, Tensor p2, "
      "Tensor beta) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("pwlu(Tensor x, " PWLU_PARAMETERS ") -> Tensor");
  m.def("pwlu_backward(Tensor grad, Tensor x, " PWLU_PARAMETERS
        ") -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
