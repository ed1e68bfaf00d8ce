// The kernels of AVX-512 with VNNI, and the integer linear layers of this instruction set.
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

namespace ivlite {

void init_avx512vnni(KernelTable& t) {
  init_shared(t);
  init_int512(t);
  init_opened512(t);
  init_attention_int(t);
}

}  // namespace ivlite
