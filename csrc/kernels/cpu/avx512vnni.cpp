// The kernels of AVX-512 VNNI.
#include "kernels/cpu/vec/avx512.h"  // first: the vocabulary of this set

#include "kernels/cpu/elementwise/resize_avx2.h"
#include "kernels/cpu/latent/int8.h"
#include "kernels/cpu/linear/unpack_avx512.h"
#include "kernels/cpu/shared.h"
#include "kernels/table.h"

namespace ivlite {

void init_avx512vnni(KernelTable& t) {
  init_shared(t);
  init_resize_avx2(t);
  init_int8_avx512(t);
  init_unpack_avx512(t);
  init_attention_int8(t);
}

}  // namespace ivlite
