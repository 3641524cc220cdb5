// What is not the same in every torch from 2.0 on, each entry with the version
// from which it can go. Nothing else in the sources asks for a version.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/version.h>

#define MM_ACON_TORCH_FROM(major, minor) \
  (TORCH_VERSION_MAJOR * 100 + TORCH_VERSION_MINOR >= (major) * 100 + (minor))

namespace mm_acon {

// Tensor::const_data_ptr<T>() and mutable_data_ptr<T>() from torch 2.1 on.
template <typename T>
inline const T* const_data(const at::Tensor& tensor) {
#if MM_ACON_TORCH_FROM(2, 1)
  return tensor.const_data_ptr<T>();
#else
  return tensor.data_ptr<T>();
#endif
}

template <typename T>
inline T* mutable_data(const at::Tensor& tensor) {
#if MM_ACON_TORCH_FROM(2, 1)
  return tensor.mutable_data_ptr<T>();
#else
  return tensor.data_ptr<T>();
#endif
}

}  // namespace mm_acon
