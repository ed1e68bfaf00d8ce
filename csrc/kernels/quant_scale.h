// The scale of a block of activations that is quantized to integers, in one place for every kernel.
#pragma once

namespace ivlite {
namespace {

struct QuantScale {
  float scale, inverse;  // x = scale code, code = round(inverse x)
};

// For a block of largest magnitude absmax (NaN if there is one) and codes up to max_code. A block that holds NaN or infinity has
// the scale NaN: integers cannot carry either, so it is the scale that makes every product of the block NaN. A block whose
// inverse would overflow has codes of zero.
inline QuantScale quant_scale(float absmax, float max_code) {
  const float zero_or_nan = absmax - absmax;
  return {absmax / max_code + zero_or_nan, absmax > 1e-33f ? max_code / absmax : 0};
}

}  // namespace
}  // namespace ivlite
