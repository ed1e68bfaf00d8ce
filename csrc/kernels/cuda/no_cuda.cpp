#include "kernels/cuda/cuda.h"

namespace ivlite {

bool cuda_available() { return false; }

}  // namespace ivlite
