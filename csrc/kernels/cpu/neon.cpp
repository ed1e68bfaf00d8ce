// The kernels of ARM's Advanced SIMD with dot products (ARMv8.2).
#include "kernels/cpu/vec/neon.h"  // first: the vocabulary of this set

#include "kernels/cpu/elementwise/resize_neon.h"
#include "kernels/cpu/linear/int8_neon.h"
#include "kernels/cpu/shared.h"
#include "kernels/table.h"

namespace ivlite {

void init_neon(KernelTable& t) {
  init_shared(t);
  init_resize_neon(t);
  init_int8_neon<Dots>(t);
}

}  // namespace ivlite
