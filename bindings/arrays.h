// How numpy arrays become views, and results become arrays. Another dtype is a TypeError, for a copy of an output would be lost;
// wrong shapes and strides raise ValueError before anything is read. The arrays live as long as the call.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdlib.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "ops/resize.h"
#include "ops/views.h"

namespace py = pybind11;

namespace ivlite {

struct InVector {
  const float* data = nullptr;
  int64_t size = 0;
};
struct InBytes {
  const uint8_t* data = nullptr;
  int64_t size = 0;
};
struct InBlocks {  // rows of bytes, one behind the other
  const uint8_t* data = nullptr;
  int64_t rows = 0, row_bytes = 0;
};
struct InFrames {  // (temporal, h, w, 3)
  const uint8_t* data = nullptr;
  int64_t temporal = 0, h = 0, w = 0;
};

struct InFlat {  // of any shape
  const float* data = nullptr;
  int64_t size = 0;
};
struct OutFlat {
  float* data = nullptr;
  int64_t size = 0;
};

// A vector of that length; or null for none.
inline const float* sized(const InVector& v, int64_t size) {
  check_size("the length of a vector", v.size, size);
  return v.data;
}
inline const float* sized(const std::optional<InVector>& v, int64_t size) { return v ? sized(*v, size) : nullptr; }

// A result on its way to Python.
template <class T>
struct Made {
  explicit Made(std::vector<int64_t> sizes) : shape(std::move(sizes)) {
    int64_t n = 1;
    for (int64_t size : shape) n = product({n, size});
    check(n <= INT64_MAX / (int64_t)sizeof(T), "an array is too large");
    data.reset((T*)allocate((size_t)n * sizeof(T)));
  }
  struct Free {
    void operator()(T* memory) const { free(memory); }
  };
  std::vector<int64_t> shape;
  std::unique_ptr<T[], Free> data;
};

inline int64_t stride(const py::array& a, int axis) { return a.strides(axis) / a.itemsize(); }

// The last axis is contiguous and the others are whole elements apart, none backwards; sizes of what is as large can be computed.
inline void need_layout(const py::array& a, int axes) {
  check(a.ndim() == axes && axes > 0, "an array has the wrong number of axes");
  check(a.shape(axes - 1) <= 1 || a.strides(axes - 1) == a.itemsize(), "the last axis of an array must be contiguous");
  int64_t size = a.itemsize();
  for (int i = 0; i < axes; i++) {
    check(a.strides(i) >= 0 && a.strides(i) % a.itemsize() == 0, "an array has strides that are not whole elements");
    size = product({size, a.shape(i)});
  }
}

inline void need_contiguous(const py::array& a, int axes) {
  need_layout(a, axes);
  check(a.flags() & py::array::c_style, "an array must be contiguous");
}

template <class T>
struct View;  // of an array: the type of its elements, and how it is made
template <>
struct View<InRows> {
  using Element = float;
  static InRows of(const py::array_t<float>& a) {
    need_layout(a, 2);
    return {a.data(), a.shape(0), a.shape(1), stride(a, 0)};
  }
};
template <>
struct View<OutRows> {
  using Element = float;
  static OutRows of(py::array_t<float>& a) {
    need_layout(a, 2);
    return {a.mutable_data(), a.shape(0), a.shape(1), stride(a, 0)};
  }
};
template <>
struct View<InHeads> {
  using Element = float;
  static InHeads of(const py::array_t<float>& a) {
    need_layout(a, 3);
    return {a.data(), a.shape(0), a.shape(1), a.shape(2), stride(a, 0), stride(a, 1)};
  }
};
template <>
struct View<OutHeads> {
  using Element = float;
  static OutHeads of(py::array_t<float>& a) {
    need_layout(a, 3);
    return {a.mutable_data(), a.shape(0), a.shape(1), a.shape(2), stride(a, 0), stride(a, 1)};
  }
};
template <>
struct View<InVector> {
  using Element = float;
  static InVector of(const py::array_t<float>& a) {
    need_layout(a, 1);
    return {a.data(), a.shape(0)};
  }
};
template <>
struct View<InBytes> {
  using Element = uint8_t;
  static InBytes of(const py::array_t<uint8_t>& a) {
    need_layout(a, 1);
    return {a.data(), a.shape(0)};
  }
};
template <>
struct View<InBlocks> {
  using Element = uint8_t;
  static InBlocks of(const py::array_t<uint8_t>& a) {
    need_contiguous(a, 2);
    return {a.data(), a.shape(0), a.shape(1)};
  }
};
template <>
struct View<InFrames> {
  using Element = uint8_t;
  static InFrames of(const py::array_t<uint8_t>& a) {
    need_contiguous(a, 4);
    check(a.shape(3) == 3, "frames must have three channels");
    return {a.data(), a.shape(0), a.shape(1), a.shape(2)};
  }
};

template <>
struct View<InPixels> {
  using Element = uint8_t;
  static InPixels of(const py::array_t<uint8_t>& a) {
    check(a.ndim() == 3 && a.shape(2) == 3 && a.strides(2) == 1, "pixels must be (h, w, 3), and the three of a pixel contiguous");
    return {a.data(), a.shape(0), a.shape(1), a.strides(0), a.strides(1)};
  }
};
template <>
struct View<OutPixels> {
  using Element = uint8_t;
  static OutPixels of(py::array_t<uint8_t>& a) {
    need_contiguous(a, 3);
    check(a.shape(2) == 3, "pixels must be (h, w, 3)");
    return {a.mutable_data(), a.shape(0), a.shape(1)};
  }
};

template <>
struct View<InFlat> {
  using Element = float;
  static InFlat of(const py::array_t<float>& a) {
    need_contiguous(a, (int)a.ndim());
    return {a.data(), a.size()};
  }
};
template <>
struct View<OutFlat> {
  using Element = float;
  static OutFlat of(py::array_t<float>& a) {
    need_contiguous(a, (int)a.ndim());
    return {a.mutable_data(), a.size()};
  }
};

// Converts an argument to a view, and keeps the array.
template <class T>
struct ViewCaster {
  using Array = py::array_t<typename View<T>::Element>;
  PYBIND11_TYPE_CASTER(T, py::detail::const_name("numpy.ndarray"));
  bool load(py::handle from, bool) {
    if (!py::isinstance<Array>(from)) return false;
    array = py::reinterpret_borrow<Array>(from);
    value = View<T>::of(array);
    return true;
  }
  Array array;
};

}  // namespace ivlite

namespace pybind11::detail {
template <>
struct type_caster<ivlite::InRows> : ivlite::ViewCaster<ivlite::InRows> {};
template <>
struct type_caster<ivlite::OutRows> : ivlite::ViewCaster<ivlite::OutRows> {};
template <>
struct type_caster<ivlite::InHeads> : ivlite::ViewCaster<ivlite::InHeads> {};
template <>
struct type_caster<ivlite::OutHeads> : ivlite::ViewCaster<ivlite::OutHeads> {};
template <>
struct type_caster<ivlite::InVector> : ivlite::ViewCaster<ivlite::InVector> {};
template <>
struct type_caster<ivlite::InBytes> : ivlite::ViewCaster<ivlite::InBytes> {};
template <>
struct type_caster<ivlite::InBlocks> : ivlite::ViewCaster<ivlite::InBlocks> {};
template <>
struct type_caster<ivlite::InFrames> : ivlite::ViewCaster<ivlite::InFrames> {};
template <>
struct type_caster<ivlite::InPixels> : ivlite::ViewCaster<ivlite::InPixels> {};
template <>
struct type_caster<ivlite::OutPixels> : ivlite::ViewCaster<ivlite::OutPixels> {};
template <>
struct type_caster<ivlite::InFlat> : ivlite::ViewCaster<ivlite::InFlat> {};
template <>
struct type_caster<ivlite::OutFlat> : ivlite::ViewCaster<ivlite::OutFlat> {};

template <class T>
struct type_caster<ivlite::Made<T>> {
  static constexpr auto name = const_name("numpy.ndarray");
  static handle cast(ivlite::Made<T>&& made, return_value_policy, handle) {
    capsule owner(made.data.get(), [](void* data) { free(data); });
    T* data = made.data.release();
    return array_t<T>(std::move(made.shape), data, owner).release();
  }
};
}  // namespace pybind11::detail
