// The kernels of AVX-512 VNNI, and matrix tiles (AMX) for many tokens: of bytes, or of bf16 with sums in float.
#include "kernels/table.h"
#include "vec/avx512.h"

#include "shared.h"

#include "linear_int.h"

#include "int512.h"

#include "opened.h"

#include "folds.h"

#include "opened512.h"

#include "attention_int.h"

#include "latent_int.h"

#include "amx_attention.h"
#include "amx_folds.h"
#include "amx_linear.h"

namespace ivlite {

void init_amx(KernelTable& t) {
  init_shared(t);
  init_int512(t);
  init_attention_int(t);
  init_amx_linear(t);
  init_amx_folds(t);
  init_amx_attention(t);
  t.matrix_peak = matrix_peak;
}

}  // namespace ivlite
