// Every family written once over the vector vocabulary, and its entries in the table.
#pragma once
#include "kernels/cpu/attention/softmax.h"
#include "kernels/cpu/elementwise/activation.h"
#include "kernels/cpu/elementwise/norm.h"
#include "kernels/cpu/elementwise/quantize.h"
#include "kernels/cpu/elementwise/rope.h"
#include "kernels/cpu/elementwise/vision.h"
#include "kernels/cpu/latent/cache.h"
#include "kernels/cpu/latent/float.h"
#include "kernels/cpu/linear/float.h"
#include "kernels/cpu/probe.h"

namespace ivlite {
namespace {

inline void init_shared(KernelTable& t) {
  t.linear[(int)Format::f32] = linear_float<WeightF32>;
  t.linear[(int)Format::f16] = linear_float<WeightF16>;
  t.linear[(int)Format::bf16] = linear_float<WeightBF16>;
  t.quantize_rows = quantize_rows;
  t.rms_norm = rms_norm;
  t.layer_norm = layer_norm;
  t.rope = rope;
  t.silu_mul = silu_mul;
  t.gelu_tanh = gelu_tanh;
  t.gelu_erf = gelu_erf;
  t.attention = attention;
  t.latent_attention[(int)CacheKind::f32] = latent_attention<CacheF32>;
  t.latent_attention[(int)CacheKind::bf16] = latent_attention<CacheF16>;
  t.latent_attention[(int)CacheKind::q8] = latent_attention<CacheQ8>;
  t.latent_attention[(int)CacheKind::q4] = latent_rotated<latent_attention<RotatedQ4>>;
  t.cache_write[(int)CacheKind::f32] = cache_write<CacheF32>;
  t.cache_write[(int)CacheKind::bf16] = cache_write<CacheF16>;
  t.cache_write[(int)CacheKind::q8] = cache_write<CacheQ8>;
  t.cache_write[(int)CacheKind::q4] = cache_write<CacheQ4>;
  t.cache_read[(int)CacheKind::f32] = cache_read<CacheF32>;
  t.cache_read[(int)CacheKind::bf16] = cache_read<CacheF16>;
  t.cache_read[(int)CacheKind::q8] = cache_read<CacheQ8>;
  t.cache_read[(int)CacheKind::q4] = cache_read<CacheQ4>;
  t.patchify = patchify;
  t.int8_peak = steps_peak<vec::kStepMacs, vec::int8_step>;
  t.read_streams[0] = read_streams<1, 4096>;
  t.read_streams[1] = read_streams<4, 0>;
}

}  // namespace
}  // namespace ivlite
