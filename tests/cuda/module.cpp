// The module that tests load in place of ivlite._C.cuda: its functions in `cuda`, and what the emulator found in `emulator`.
#include <algorithm>

#include "cases.h"
#include "check.h"
#include "cuda.h"

namespace emulator = ivlite::cuda::emulator;

namespace {

py::list traffic() {
  py::list out;
  for (const emulator::Traffic& t : emulator::take_traffic()) {
    py::dict row;
    row["kernel"] = t.kernel, row["source"] = emulator::source_of(t.place), row["memory"] = t.memory, row["access"] = t.access;
    row["bytes"] = t.bytes, row["requests"] = t.requests, row["parts"] = t.parts, row["needed"] = t.needed;
    out.append(row);
  }
  return out;
}

using ivlite::launcher, ivlite::pointer;
namespace cases = ivlite::cuda::cases;

void bind_cases(py::module_ m) {
  launcher(
      m, "multiply", +[](int product, uintptr_t d, uintptr_t a, uintptr_t b, bool matrix) {
        return cases::multiply((cases::Product)product, pointer<void>(d), pointer<void>(a), pointer<void>(b), matrix);
      });
  launcher(
      m, "matrices", +[](uintptr_t out, uintptr_t rows, bool transposed) {
        return cases::matrices(pointer<uint32_t>(out), pointer<uint16_t>(rows), transposed);
      });
  launcher(
      m, "warp_functions",
      +[](uintptr_t out, uintptr_t in, int blocks) { return cases::warp_functions(pointer<float>(out), pointer<float>(in), blocks); });
  launcher(
      m, "copies", +[](uintptr_t out, uintptr_t in) { return cases::copies(pointer<float>(out), pointer<float>(in)); });
  launcher(
      m, "strided", +[](uintptr_t out, uintptr_t in, int bytes, int stride) {
        return cases::strided(pointer<float>(out), pointer<float>(in), bytes, stride);
      });
  launcher(
      m, "rounded", +[](uintptr_t out, uintptr_t in, int count) { return cases::rounded(pointer<float>(out), pointer<float>(in), count); });
  launcher(
      m, "counted", +[](uintptr_t counter, int blocks) { return cases::counted(pointer<int>(counter), blocks); });
  launcher(
      m, "gathered", +[](uintptr_t out, uintptr_t sums, uintptr_t in, uintptr_t counter, int blocks) {
        return cases::gathered(pointer<float>(out), pointer<float>(sums), pointer<float>(in), pointer<int>(counter), blocks);
      });
  launcher(
      m, "faulty",
      +[](int fault, uintptr_t memory, int count) { return cases::faulty((cases::Fault)fault, pointer<float>(memory), count); });
}

}  // namespace

PYBIND11_MODULE(IVLITE_MODULE, m) {
  py::register_local_exception<emulator::Fault>(m, "Fault", PyExc_AssertionError);
  ivlite::bind_cuda(m.def_submodule("cuda"));
  bind_cases(m.def_submodule("cases"));
  py::module_ found = m.def_submodule("emulator");
  found.def("register", [](uintptr_t memory, size_t bytes) { emulator::register_memory((const void*)memory, bytes); });
  found.def("forget", [](uintptr_t memory) { emulator::forget_memory((const void*)memory); });
  found.def(
      "set_shared_limit", [](size_t bytes) { emulator::shared_limit = std::min(bytes, emulator::kMostShared); },
      "Bytes of shared memory that a block may have.");
  found.def(
      "launches", [] { return (int64_t)emulator::launches; }, "How many kernels were launched.");
  found.def(
      "count", [](bool on) { emulator::counting = on; }, "Whether traffic is counted from now on.");
  found.def("take_traffic", traffic, "What was counted since the last call, a dict per place in the code (check.h).");
  found.def(
      "take_unwritten",
      [] {
        const emulator::Unwritten u = emulator::take_unwritten();
        return py::make_tuple(u.reads, u.first);
      },
      "Reads of shared memory that nothing had written, since the last call: how many, and where the first was.");
}
