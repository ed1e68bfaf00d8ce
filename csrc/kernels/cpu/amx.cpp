// The kernels of AMX: those of AVX-512 VNNI, and matrix tiles for many tokens, in int8 or in bf16 with float sums.
#include "kernels/cpu/vec/avx512.h"  // first: the vocabulary of this set

#include "kernels/cpu/attention/amx.h"
#include "kernels/cpu/elementwise/resize_avx2.h"
#include "kernels/cpu/latent/int8.h"
#include "kernels/cpu/linear/amx_bf16.h"
#include "kernels/cpu/linear/amx_int8.h"
#include "kernels/cpu/shared.h"
#include "kernels/table.h"

namespace ivlite {

void init_amx(KernelTable& t) {
  init_shared(t);
  init_resize_avx2(t);
  init_int8_avx512(t);
  init_attention_int8(t);
  init_amx_bf16(t);
  init_amx_int8(t);
  init_amx_attention(t);
  t.matrix_peak = matrix_peak;
}

}  // namespace ivlite
