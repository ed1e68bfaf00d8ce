// How launchers become Python's: pointers and streams are integers, no call keeps the GIL, and a status that is no success
// becomes ivlite._C.cuda.Error(code, name, text).
#pragma once
#include "bindings.h"
#include "kernels/cuda/cuda.h"

namespace ivlite {

struct CudaError {
  cuda::Status status;
};

template <class T>
T* pointer(uintptr_t address) {
  return (T*)address;
}

template <class... Args, class... Extra>
void launcher(py::module_& m, const char* name, cuda::Status (*function)(Args...), const Extra&... extra) {
  static_assert(free_of_python<Args...>, "a launcher handles no Python objects");
  const auto checked = [function](Args... args) {
    const cuda::Status status = function(std::forward<Args>(args)...);
    if (status != 0) throw CudaError{status};
  };
  m.def(name, checked, py::call_guard<Released>(), extra...);
}

void bind_cuda_elementwise(py::module_& m);
void bind_cuda_linear(py::module_& m);
void bind_cuda_attention(py::module_& m);
void bind_cuda_gemm(py::module_& m);

}  // namespace ivlite
