// The kernels of AVX2 + FMA + F16C, and the integer product of its linear layers.
#include "kernels/cpu/vec/avx2.h"  // first: the vocabulary of this set

#include "kernels/cpu/elementwise/resize_avx2.h"
#include "kernels/cpu/latent/int16.h"
#include "kernels/cpu/linear/unpack_avx2.h"
#include "kernels/cpu/shared.h"
#include "kernels/table.h"

namespace ivlite {

void init_avx2(KernelTable& t) {
  init_shared(t);
  init_resize_avx2(t);
  init_int8_avx2<Maddubs>(t);
  init_unpack_avx2(t);
  init_attention_int16(t);
  init_latent_int16(t);
}

}  // namespace ivlite
