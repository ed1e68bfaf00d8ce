#include "kernels/cuda/gemm.cuh"

namespace ivlite::cuda {

template Status start_gemm<Format::q4_0>(const GemmProduct&, int, int, Stream);

}  // namespace ivlite::cuda
