// The place of the CUDA kernels: they come as their own files here, behind ivlite/ops/cuda.py.
#pragma once

namespace ivlite {

bool cuda_available();  // false in a build without them

}  // namespace ivlite
