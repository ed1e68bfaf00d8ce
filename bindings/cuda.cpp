// _C.cuda of a build with CUDA kernels. A launcher's pointers are addresses of device memory, its stream is one of the driver's.
#include "cuda.h"

#include <exception>

namespace ivlite {
namespace {

using namespace cuda;

PyObject* error_type = nullptr;  // as long as the process

void translate(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const CudaError& e) {
    const py::tuple args = py::make_tuple(e.status, status_name(e.status), status_text(e.status));
    PyErr_SetObject(error_type, args.ptr());
  }
}

void need(Status status) {
  if (status != 0) throw CudaError{status};
}

int cards() {
  int count = 0;
  need(count_cards(&count));
  return count;
}

int driver() {
  int version = 0;
  need(driver_version(&version));
  return version;
}

Card card(int index) {
  Card out;
  need(describe_card(&out, index));
  return out;
}

uintptr_t allocate_bytes(int64_t bytes) {
  void* memory = nullptr;
  need(allocate(&memory, bytes));
  return (uintptr_t)memory;
}

void bind_cards(py::module_& m) {
  py::class_<Card>(m, "Card", py::module_local(), "A card of this machine.")
      .def_property_readonly("name", [](const Card& c) { return std::string(c.name); })
      .def_property_readonly(
          "capability", [](const Card& c) { return py::make_tuple(c.major, c.minor); }, "Compute capability.")
      .def_readonly("memory", &Card::memory, "Bytes in all.")
      .def_readonly("multiprocessors", &Card::multiprocessors)
      .def_property_readonly(
          "has_kernels", [](const Card& c) { return c.refused == 0; }, "Whether this build has kernels that run on it now.")
      .def_property_readonly(
          "fault", [](const Card& c) { return std::string(c.refused == 0 || c.no_kernels ? "" : status_text(c.refused)); },
          "What the driver says where kernels for it cannot be started.");
  launcher(m, "use_card", use_card, py::arg("index"), "What the calling thread launches on.");
  release(m, "driver", driver, "1000 x major + 10 x minor of the newest CUDA that the driver knows; 0 without a driver.");
  release(m, "cards", cards, "How many cards there are.");
  release(m, "card", card, py::arg("index"));
}

void bind_memory(py::module_& m) {
  release(m, "allocate", allocate_bytes, py::arg("bytes"), "The address of new device memory.");
  launcher(
      m, "release", +[](uintptr_t memory) { return cuda::release(pointer<void>(memory)); }, py::arg("memory"));
  launcher(
      m, "copy_to_card",
      +[](uintptr_t to, uintptr_t from, int64_t bytes) { return copy_to_card(pointer<void>(to), pointer<void>(from), bytes); },
      py::arg("to"), py::arg("source"), py::arg("bytes"), "Copies from host memory.");
  launcher(
      m, "copy_from_card",
      +[](uintptr_t to, uintptr_t from, int64_t bytes) { return copy_from_card(pointer<void>(to), pointer<void>(from), bytes); },
      py::arg("to"), py::arg("source"), py::arg("bytes"), "Copies to host memory, after the work before.");
  launcher(m, "synchronize", synchronize, "Waits for all work; its errors are raised here.");
  launcher(
      m, "fill",
      +[](uintptr_t memory, uint32_t word, int64_t count, uintptr_t stream) {
        return fill(pointer<uint32_t>(memory), word, count, pointer<void>(stream));
      },
      py::arg("memory"), py::arg("word"), py::arg("count"), py::arg("stream"), "Sets `count` words of 32 bits.");
}

}  // namespace

void bind_cuda(py::module_ m) {
  m.doc() = "The CUDA kernels.";
  m.attr("built") = true;
  error_type = py::exception<CudaError>(m, "Error").release().ptr();
  py::register_local_exception_translator(translate);
  bind_cards(m);
  bind_memory(m);
  bind_cuda_elementwise(m);
  bind_cuda_linear(m);
  bind_cuda_attention(m);
  bind_cuda_gemm(m);
}

}  // namespace ivlite
