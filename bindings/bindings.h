// How C++ functions become Python's. Three ways, and no other: nothing in here waits for anything while it holds the GIL.
//   compute   runs without the GIL, on the thread pool given as the last argument `pool` (None: the process's own)
//   release   runs without the GIL, and uses no threads
//   hold      keeps the GIL: for what handles Python objects, or only reads; such a function takes no lock
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <memory>
#include <type_traits>
#include <utility>

#include "arrays.h"
#include "core/pool.h"

namespace ivlite {

// The GIL is given back while this lives. When the interpreter has ended meanwhile, which it does without waiting for daemon
// threads, the thread sleeps until the process is gone: to unwind it, as older Pythons do, would end in std::terminate.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  ~Released() {
#ifdef __GLIBCXX__
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) pause();
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* state_;
};

// Deletes a bound object without the GIL: threads are joined, gigabytes unmapped. One that an error leaves half made is deleted
// where it was made, which has given the GIL back already.
struct WithoutGil {
  template <class T>
  void operator()(T* object) const {
    const Released released;
    delete object;
  }
};
template <class T>
using Owned = std::unique_ptr<T, WithoutGil>;

template <class... Args>
constexpr bool free_of_python = !(std::is_base_of_v<py::handle, std::decay_t<Args>> || ...);

template <class To, class R, class... Args, class... Extra>
void compute(To& to, const char* name, R (*function)(Args...), const Extra&... extra) {
  static_assert(free_of_python<R, Args...>, "a function that runs without the GIL handles no Python objects");
  const auto on_pool = [function](Args... args, ThreadPool* pool) -> R {
    const UsePool use(pool);
    return function(std::forward<Args>(args)...);
  };
  to.def(name, on_pool, py::call_guard<Released>(), extra..., py::arg("pool") = py::none());
}

template <class To, class R, class... Args, class... Extra>
void release(To& to, const char* name, R (*function)(Args...), const Extra&... extra) {
  static_assert(free_of_python<R, Args...>, "a function that runs without the GIL handles no Python objects");
  to.def(name, function, py::call_guard<Released>(), extra...);
}

template <class To, class F, class... Extra>
void hold(To& to, const char* name, F function, const Extra&... extra) {
  to.def(name, function, extra...);
}

// A constructor, which `make` computes as in `compute`; pybind11 registers the object with the GIL.
template <class Class, class T, class... Args, class... Extra>
void construct(Class& to, std::unique_ptr<T> (*make)(Args...), const Extra&... extra) {
  static_assert(free_of_python<Args...>, "a function that runs without the GIL handles no Python objects");
  const auto on_pool = [make](Args... args, ThreadPool* pool) {
    const Released released;
    const UsePool use(pool);
    return Owned<T>(make(std::forward<Args>(args)...).release());  // what is given up half made is deleted by its maker
  };
  to.def(py::init(on_pool), extra..., py::arg("pool") = py::none());
}

void bind_threads(py::module_& m);
void bind_machine(py::module_& m);
void bind_formats(py::module_& m);
void bind_ops(py::module_& m);
void bind_testing(py::module_& m);
void bind_cuda(py::module_ m);  // cuda.cpp or no_cuda.cpp

}  // namespace ivlite
