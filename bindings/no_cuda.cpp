// _C.cuda of a build without CUDA kernels.
#include "bindings.h"

namespace ivlite {

void bind_cuda(py::module_ m) {
  m.doc() = "The CUDA kernels: this build has none.";
  m.attr("built") = false;
}

}  // namespace ivlite
