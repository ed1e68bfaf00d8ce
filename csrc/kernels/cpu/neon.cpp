// The kernels of ARM's Advanced SIMD with dot products (ARMv8.2).
#include "kernels/table.h"
#include "vec/neon.h"

#include "shared.h"

#include "int_neon.h"

namespace ivlite {

void init_neon(KernelTable& t) {
  init_shared(t);
  init_int_neon<Dots>(t);
}

}  // namespace ivlite
