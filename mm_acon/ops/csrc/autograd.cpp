// Joins the operators with their backward operators. In C++, since the same
// in Python costs about as much as the kernel itself on small maps.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

namespace mm_acon {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A backward operator has no derivative. Autograd would go on with zeros.
variable_list refuse(const char* name) {
  TORCH_CHECK(false, "mm_acon::", name,
              "_backward has no second derivative. Run the plain-PyTorch form "
              "where one is needed: mm_acon.ops.",
              name, "_reference.");
}

using Gradients4 = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Tensor call_acon(const Tensor& x, const Tensor& p1, const Tensor& p2,
                 const Tensor& beta) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("mm_acon::acon", "")
                       .typed<decltype(call_acon)>();
  return op.call(x, p1, p2, beta);
}

Gradients4 call_acon_backward(const Tensor& grad, const Tensor& x,
                              const Tensor& p1, const Tensor& p2,
                              const Tensor& beta) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("mm_acon::acon_backward", "")
                       .typed<decltype(call_acon_backward)>();
  return op.call(grad, x, p1, p2, beta);
}

struct AconBackward : torch::autograd::Function<AconBackward> {
  static variable_list forward(AutogradContext*, const Tensor& grad,
                               const Tensor& x, const Tensor& p1,
                               const Tensor& p2, const Tensor& beta) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [dx, dp1, dp2, dbeta] = call_acon_backward(grad, x, p1, p2, beta);
    return {dx, dp1, dp2, dbeta};
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    return refuse("acon");
  }
};

struct Acon : torch::autograd::Function<Acon> {
  static Tensor forward(AutogradContext* context, const Tensor& x,
                        const Tensor& p1, const Tensor& p2,
                        const Tensor& beta) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({x, p1, p2, beta});
    return call_acon(x, p1, p2, beta);
  }
  static variable_list backward(AutogradContext* context,
                                const variable_list& grad) {
    const auto s = context->get_saved_variables();
    auto [dx, dp1, dp2, dbeta] =
        call_acon_backward(grad[0], s[0], s[1], s[2], s[3]);
    return {dx, dp1, dp2, dbeta};
  }
};

Tensor acon_autograd(const Tensor& x, const Tensor& p1, const Tensor& p2,
                     const Tensor& beta) {
  return Acon::apply(x, p1, p2, beta);
}

Gradients4 acon_backward_autograd(const Tensor& grad, const Tensor& x,
                                  const Tensor& p1, const Tensor& p2,
                                  const Tensor& beta) {
  const auto r = AconBackward::apply(grad, x, p1, p2, beta);
  return {r[0], r[1], r[2], r[3]};
}

using Gradients6 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor call_pwlu(const Tensor& x, const Tensor& points, const Tensor& left,
                 const Tensor& right, const Tensor& left_slope,
                 const Tensor& right_slope) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("mm_acon::pwlu", "")
                       .typed<decltype(call_pwlu)>();
  return op.call(x, points, left, right, left_slope, right_slope);
}

Gradients6 call_pwlu_backward(const Tensor& grad, const Tensor& x,
                              const Tensor& points, const Tensor& left,
                              const Tensor& right, const Tensor& left_slope,
                              const Tensor& right_slope) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("mm_acon::pwlu_backward", "")
                       .typed<decltype(call_pwlu_backward)>();
  return op.call(grad, x, points, left, right, left_slope, right_slope);
}

struct PwluBackward : torch::autograd::Function<PwluBackward> {
  static variable_list forward(AutogradContext*, const Tensor& grad,
                               const Tensor& x, const Tensor& points,
                               const Tensor& left, const Tensor& right,
                               const Tensor& left_slope,
                               const Tensor& right_slope) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [dx, dpoints, dleft, dright, dleft_slope, dright_slope] =
        call_pwlu_backward(grad, x, points, left, right, left_slope,
                           right_slope);
    return {dx, dpoints, dleft, dright, dleft_slope, dright_slope};
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    return refuse("pwlu");
  }
};

struct Pwlu : torch::autograd::Function<Pwlu> {
  static Tensor forward(AutogradContext* context, const Tensor& x,
                        const Tensor& points, const Tensor& left,
                        const Tensor& right, const Tensor& left_slope,
                        const Tensor& right_slope) {
    at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward(
        {x, points, left, right, left_slope, right_slope});
    return call_pwlu(x, points, left, right, left_slope, right_slope);
  }
  static variable_list backward(AutogradContext* context,
                                const variable_list& grad) {
    const auto s = context->get_saved_variables();
    auto [dx, dpoints, dleft, dright, dleft_slope, dright_slope] =
        call_pwlu_backward(grad[0], s[0], s[1], s[2], s[3], s[4], s[5]);
    return {dx, dpoints, dleft, dright, dleft_slope, dright_slope};
  }
};

Tensor pwlu_autograd(const Tensor& x, const Tensor& points, const Tensor& left,
                     const Tensor& right, const Tensor& left_slope,
                     const Tensor& right_slope) {
  return Pwlu::apply(x, points, left, right, left_slope, right_slope);
}

Gradients6 pwlu_backward_autograd(const Tensor& grad, const Tensor& x,
                                  const Tensor& points, const Tensor& left,
                                  const Tensor& right,
                                  const Tensor& left_slope,
                                  const Tensor& right_slope) {
  const auto r = PwluBackward::apply(grad, x, points, left, right, left_slope,
                                     right_slope);
  return {r[0], r[1], r[2], r[3], r[4], r[5]};
}

}  // namespace

TORCH_LIBRARY_IMPL(mm_acon, Autograd, m) {
  m.impl("acon", acon_autograd);
  m.impl("acon_backward", acon_backward_autograd);
  m.impl("pwlu", pwlu_autograd);
  m.impl("pwlu_backward", pwlu_backward_autograd);
}

}  // namespace mm_acon
