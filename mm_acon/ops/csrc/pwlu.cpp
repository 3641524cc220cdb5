// PWLU but for its kernels: schema, checks, derivative.
#include "autograd.h"
#include "pwlu_math.h"

#define PWLU_PARAMETERS                                    \
  "Tensor points, Tensor left_bound, Tensor right_bound, " \
  "Tensor left_slope, Tensor right_slope"

namespace mm_acon {

void check_pwlu(const at::Tensor& x, const at::Tensor& points,
                const at::Tensor& left_bound, const at::Tensor& right_bound,
                const at::Tensor& left_slope, const at::Tensor& right_slope) {
  check_input(x);
  check_parameter(x, points, 2, "points");
  TORCH_CHECK(points.size(1) >= 2, "mm_acon: points of shape ", points.sizes(),
              " have no interval");
  check_parameter(x, left_bound, 1, "left_bound");
  check_parameter(x, right_bound, 1, "right_bound");
  check_parameter(x, left_slope, 1, "left_slope");
  check_parameter(x, right_slope, 1, "right_slope");
}

namespace {

struct Pwlu {
  static constexpr const char* kName = "pwlu";
  static constexpr size_t kTensors = 6;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(mm_acon, m) {
  m.def("pwlu(Tensor x, " PWLU_PARAMETERS ") -> Tensor");
  m.def(
      "pwlu_backward(Tensor grad, Tensor x, " PWLU_PARAMETERS
      ", bool[6] asked) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mm_acon, Autograd, m) {
  Differentiable<Pwlu>::implement(m);
}

}  // namespace mm_acon
