// ivlite._C: the compiled part, one file of bindings per subject.
#include <string.h>

#include "bindings.h"
#include "core/stop.h"

namespace {

// Looked up when the module is loaded. Code of Python that runs inside a binding, such as an import, may give the GIL to an
// interpreter that is ending; a daemon thread is then unwound through frames that need the GIL, which aborts the process.
struct Errors {
  PyObject *stopped, *usage;
};
Errors errors{};

// Work that was stopped is not an error; an environment variable that cannot be obeyed is the user's mistake; any other invalid
// argument is a ValueError.
void translate(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const ivlite::Stopped& e) {
    PyErr_SetString(errors.stopped, e.what());
  } catch (const std::invalid_argument& e) {
    if (strncmp(e.what(), "IVLITE_", 7) != 0) throw;
    // What a variable holds may be no UTF-8, which py::set_error asks for.
    const auto text = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(e.what(), strlen(e.what()), "backslashreplace"));
    if (text) PyErr_SetObject(errors.usage, text.ptr());
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The kernels of ivlite. Use it through ivlite.ops.";
  const auto found = py::module_::import("ivlite.errors");
  errors = {py::object(found.attr("Stopped")).release().ptr(), py::object(found.attr("UsageError")).release().ptr()};
  py::detail::npy_api::get();  // imports numpy
  py::register_local_exception_translator(translate);
  m.attr("__version__") = IVLITE_VERSION;
  ivlite::bind_threads(m);
  ivlite::bind_machine(m);
  ivlite::bind_formats(m);
  ivlite::bind_ops(m);
  ivlite::bind_cuda(m.def_submodule("cuda"));
  py::module_ testing = m.def_submodule("testing", "What only tests and benchmarks need.");
  ivlite::bind_testing(testing);
}
