// The plain kernels, by family: each fills its entries of the table.
#pragma once
#include "kernels/quant_scale.h"
#include "kernels/table.h"

namespace ivlite {

// The largest magnitude so far; a NaN stays.
inline float larger(float absmax, float x) {
  const float a = x < 0 ? -x : x;
  return a > absmax || a != a ? a : absmax;
}

void init_ref_linear(KernelTable& t);
void init_ref_norm(KernelTable& t);
void init_ref_rope(KernelTable& t);
void init_ref_activation(KernelTable& t);
void init_ref_attention(KernelTable& t);
void init_ref_cache(KernelTable& t);
void init_ref_vision(KernelTable& t);
void init_ref_resize(KernelTable& t);

}  // namespace ivlite
