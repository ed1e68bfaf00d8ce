// The weight formats, one row each: the only place that knows them all.
//
// A format is described once, in its own header (struct, decode, encode, the specification in a comment); the quantizer
// and the runtime both use it. To add one: write formats/<name>.h and add a row to FORMATS.
#pragma once
#include <stdint.h>

namespace ivlite {

enum class Format { f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q4_0 };
constexpr int kFormatCount = 8;

struct FormatInfo {
  const char* name;  // as on the command line
  int ggml_type;     // the id in a GGUF tensor record
  int block;         // weights in one block; a row is a multiple of it
  int block_bytes;
  bool quantized;                                           // its linear kernels take int8 activations
  void (*decode)(float* y, const void* blocks, int64_t n);  // n weights, a multiple of block
  // importance: what a squared error costs, one number per weight (>= 0), or null
  void (*encode)(void* blocks, const float* x, const float* importance, int64_t n);
};

extern const FormatInfo FORMATS[kFormatCount];  // indexed by Format

}  // namespace ivlite
