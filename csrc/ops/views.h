// What ops take: pointers with their shapes. The last axis is contiguous; strides are in elements.
#pragma once
#include <stdint.h>

#include <initializer_list>
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

// The product of sizes. Throws std::invalid_argument for a negative one and where it is more than any memory has.
inline int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t all = 1;
  for (int64_t n : sizes)
    check(n >= 0 && !__builtin_mul_overflow(all, n, &all) && all < (int64_t)1 << 62, "sizes are negative, or their product is too large");
  return all;
}

inline void check_size(const char* what, int64_t got, int64_t want) {
  if (got != want) throw std::invalid_argument(std::string(what) + " is " + std::to_string(got) + "; it must be " + std::to_string(want));
}

}  // namespace ivlite
