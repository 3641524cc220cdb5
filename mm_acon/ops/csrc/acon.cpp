// ACON but for its kernels: schema, checks, derivative.
#include "acon_math.h"
#include "autograd.h"

namespace mm_acon {

const float kLeastPower = -126.f, kMostPower = 128.f;

void check_acon(const at::Tensor& x, const at::Tensor& p1,
                const at::Tensor& p2, const at::Tensor& beta) {
  check_input(x);
  check_parameter(x, p1, 1, "p1");
  check_parameter(x, p2, 1, "p2");
  if (beta.dim() == 1) return check_parameter(x, beta, 1, "beta");
  TORCH_CHECK(beta.device() == x.device() &&
                  (beta_kind(beta, x) == BetaKind::kElement ||
                   (beta.dim() == 2 && beta.size(0) == x.size(0) &&
                    (beta.size(1) == 1 || beta.size(1) == x.size(1)))),
              "mm_acon: beta of shape ", beta.sizes(), " on ", beta.device(),
              " does not fit x of shape ", x.sizes(), " on ", x.device());
}

namespace {

struct Acon {
  static constexpr const char* kName = "acon";
  static constexpr size_t kTensors = 4;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(mm_acon, m) {
  m.def("acon(Tensor x, Tensor p1, Tensor p2, Tensor beta) -> Tensor");
  m.def(
      "acon_backward(Tensor grad, Tensor x, Tensor p1, Tensor p2, "
      "Tensor beta, bool[4] asked) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mm_acon, Autograd, m) {
  Differentiable<Acon>::implement(m);
}

}  // namespace mm_acon
