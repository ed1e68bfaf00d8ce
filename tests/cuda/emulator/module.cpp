// The module that tests load in place of ivlite._C.cuda: its functions in `cuda`, and what the emulator found in `emulator`.
#include "bindings.h"
#include "check.h"

namespace emulator = ivlite::cuda::emulator;

PYBIND11_MODULE(IVLITE_MODULE, m) {
  py::register_local_exception<emulator::Fault>(m, "Fault", PyExc_AssertionError);
  ivlite::bind_cuda(m.def_submodule("cuda"));
  py::module_ found = m.def_submodule("emulator");
  found.def("register", [](uintptr_t memory, size_t bytes) { emulator::register_memory((const void*)memory, bytes); });
  found.def("forget", [](uintptr_t memory) { emulator::forget_memory((const void*)memory); });
}
