// All that kernels want of a GPU and its runtime. The tests, which run the
// kernels on the CPU, have a file of their own in its place: hence a guard
// with a name.
#ifndef MM_ACON_CUDA_RUNTIME
#define MM_ACON_CUDA_RUNTIME

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <limits>

#define MM_ACON_DEVICE CUDA

namespace mm_acon {

using DeviceGuard = c10::cuda::CUDAGuard;

// Dynamic shared memory, aligned to 16 bytes.
__device__ __forceinline__ void* shared_memory() {
  extern __shared__ double2 storage[];
  return storage;
}

// Global memory.
template <typename T>
__device__ __forceinline__ T read(const T* from) {
  return *from;
}
template <typename T>
__device__ __forceinline__ void write(T* to, const T& value) {
  *to = value;
}

inline int64_t device_limit(cudaDeviceAttr attribute) {
  int limit = 0;
  C10_CUDA_CHECK(
      cudaDeviceGetAttribute(&limit, attribute, c10::cuda::current_device()));
  return limit;
}

// Bytes of shared memory that a block can have at most.
inline int64_t shared_limit() {
  return device_limit(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// Bytes of shared memory that each of so many blocks has, if they are to run
// on a multiprocessor at once.
inline int64_t shared_of_each(int blocks) {
  return device_limit(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / blocks -
         device_limit(cudaDevAttrReservedSharedMemoryPerBlock);
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads,
            int64_t shared, const Arguments&... arguments) {
  TORCH_CHECK(blocks <= std::numeric_limits<int>::max(),
              "mm_acon: the input needs ", blocks, " blocks of a GPU");
  if (shared > 48 * 1024) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shared)));
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared,
           c10::cuda::getCurrentCUDAStream()>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace mm_acon

#endif
