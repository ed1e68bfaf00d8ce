// What ops take: pointers with their shapes. The last axis is contiguous; strides are in elements.
#pragma once
#include <stdint.h>

#include <stdexcept>
#include <string>

namespace ivlite {

template <class T>
struct Rows {  // (rows, cols)
  T* data;
  int64_t rows, cols, stride;
};

template <class T>
struct Heads {  // (tokens, heads, dim)
  T* data;
  int64_t tokens, heads, dim, token_stride, head_stride;
};

using InRows = Rows<const float>;
using OutRows = Rows<float>;
using InHeads = Heads<const float>;
using OutHeads = Heads<float>;

// Throws std::invalid_argument unless ok.
inline void check(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

inline void check_size(const char* what, int64_t got, int64_t want) {
  if (got != want) throw std::invalid_argument(std::string(what) + " is " + std::to_string(got) + "; it must be " + std::to_string(want));
}

}  // namespace ivlite
