// Joins an operator with its backward operator. In C++, since the same in
// Python costs about as much as the kernel itself on small maps.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>

#include "common.h"

namespace mm_acon {

// NAME(Tensor x, ...) -> Tensor with n tensors in all, and
// NAME_backward(Tensor grad, Tensor x, ..., bool[n] asked) -> (Tensor, ...)
// with the gradient of each that is asked for, undefined for the others.
// Operator has the name and n.
template <typename Operator,
          typename = std::make_index_sequence<Operator::kTensors>>
class Differentiable;

template <typename Operator, size_t... I>
class Differentiable<Operator, std::index_sequence<I...>> {
  using Tensor = at::Tensor;
  using Context = torch::autograd::AutogradContext;
  using List = torch::autograd::variable_list;
  using Asked = mm_acon::Asked<sizeof...(I)>;
  using Gradients = mm_acon::Gradients<sizeof...(I)>;
  template <size_t>
  using Input = const Tensor&;

 public:
  // For TORCH_LIBRARY_IMPL(mm_acon, Autograd, ...).
  static void implement(torch::Library& library) {
    library.impl(name().c_str(), forward);
    library.impl(name("_backward").c_str(), backward);
  }

 private:
  static std::string name(const char* suffix = "") {
    return std::string(Operator::kName) + suffix;
  }

  template <typename Signature>
  static c10::TypedOperatorHandle<Signature> find(const char* suffix = "") {
    return c10::Dispatcher::singleton()
        .findSchemaOrThrow(("mm_acon::" + name(suffix)).c_str(), "")
        .template typed<Signature>();
  }

  static Tensor call(Input<I>... inputs) {
    static const auto op = find<Tensor(Input<I>...)>();
    return op.call(inputs...);
  }

  static Gradients call_backward(const Tensor& grad, Input<I>... inputs,
                                 Asked asked) {
    static const auto op =
        find<Gradients(const Tensor&, Input<I>..., Asked)>("_backward");
    return op.call(grad, inputs..., asked);
  }

  // Whether a node of the graph is for anything. Forward-mode derivatives,
  // which would be lost, are refused.
  template <typename... Tensors>
  static bool is_differentiated(const Tensors&... tensors) {
    TORCH_CHECK(!(tensors._fw_grad(0).defined() || ...), "mm_acon::", name(),
                " has no forward-mode derivative.", remedy());
    return at::GradMode::is_enabled() && (tensors.requires_grad() || ...);
  }

  static std::string remedy() {
    return " Run the plain-PyTorch form where one is needed: mm_acon.ops." +
           name("_reference.");
  }

  struct Forward : torch::autograd::Function<Forward> {
    static Tensor forward(Context* context, Input<I>... inputs) {
      at::AutoDispatchBelowADInplaceOrView below;
      context->save_for_backward({inputs...});
      return call(inputs...);
    }
    static List backward(Context* context, const List& grad) {
      const List saved = context->get_saved_variables();
      const Gradients gradients = call_backward(
          grad[0], saved[I]..., Asked{context->needs_input_grad(I)...});
      return {std::get<I>(gradients)...};
    }
  };

  static Tensor forward(Input<I>... inputs) {
    if (is_differentiated(inputs...)) return Forward::apply(inputs...);
    at::AutoDispatchBelowADInplaceOrView below;
    return call(inputs...);
  }

  // A backward operator has no derivative. Autograd would go on with zeros.
  struct Backward : torch::autograd::Function<Backward> {
    static List forward(Context*, const Tensor& grad, Input<I>... inputs,
                        Asked asked) {
      at::AutoDispatchBelowADInplaceOrView below;
      const Gradients gradients = call_backward(grad, inputs..., asked);
      List found;
      ((asked[I] ? found.push_back(std::get<I>(gradients)) : void()), ...);
      return found;
    }
    static List backward(Context*, const List&) {
      TORCH_CHECK(false, "mm_acon::", name(),
                  "_backward has no second derivative.", remedy());
    }
  };

  static Gradients backward(const Tensor& grad, Input<I>... inputs,
                            Asked asked) {
    if (is_differentiated(grad, inputs...)) {
      const List found = Backward::apply(grad, inputs..., asked);
      Gradients gradients;
      size_t next = 0;
      ((asked[I] ? void(std::get<I>(gradients) = found[next++]) : void()),
       ...);
      return gradients;
    }
    at::AutoDispatchBelowADInplaceOrView below;
    return call_backward(grad, inputs..., asked);
  }
};

}  // namespace mm_acon
