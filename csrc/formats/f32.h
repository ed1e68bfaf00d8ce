// float32, as it is.
#pragma once
#include <stdint.h>
#include <string.h>

namespace ivlite {
namespace {

inline void decode_f32(float* y, const void* blocks, int64_t n) { memcpy(y, blocks, (size_t)n * 4); }
inline void encode_f32(void* blocks, const float* x, int64_t n) { memcpy(blocks, x, (size_t)n * 4); }

}  // namespace
}  // namespace ivlite
