// How numpy arrays become views. Wrong shapes and dtypes raise ValueError before anything is read.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "ops/views.h"

namespace py = pybind11;

namespace ivlite {

using Floats = py::array_t<float>;
using Bytes = py::array_t<uint8_t>;

inline void need(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

inline int64_t stride(const py::array& a, int axis) { return a.strides(axis) / a.itemsize(); }

// The last axis is contiguous and the others are whole elements apart, none backwards.
inline void need_layout(const py::array& a, int axes) {
  need(a.ndim() == axes, "an array has the wrong number of axes");
  need(a.shape(axes - 1) <= 1 || a.strides(axes - 1) == a.itemsize(), "the last axis of an array must be contiguous");
  for (int i = 0; i < axes; i++)
    need(a.strides(i) >= 0 && a.strides(i) % a.itemsize() == 0, "an array has strides that are not whole elements");
}

inline InRows in_rows(const Floats& a) {
  need_layout(a, 2);
  return {a.data(), a.shape(0), a.shape(1), stride(a, 0)};
}
inline OutRows out_rows(Floats& a) {
  need_layout(a, 2);
  return {a.mutable_data(), a.shape(0), a.shape(1), stride(a, 0)};
}
inline InHeads in_heads(const Floats& a) {
  need_layout(a, 3);
  return {a.data(), a.shape(0), a.shape(1), a.shape(2), stride(a, 0), stride(a, 1)};
}
inline OutHeads out_heads(Floats& a) {
  need_layout(a, 3);
  return {a.mutable_data(), a.shape(0), a.shape(1), a.shape(2), stride(a, 0), stride(a, 1)};
}
inline const float* in_vector(const Floats& a, int64_t size) {
  need_layout(a, 1);
  check_size("the length of a vector", a.shape(0), size);
  return a.data();
}
inline const uint8_t* in_bytes(const Bytes& a) {
  need_layout(a, 1);
  return a.data();
}

void bind_machine(py::module_& m);
void bind_formats(py::module_& m);
void bind_ops(py::module_& m);
void bind_testing(py::module_& m);

}  // namespace ivlite
