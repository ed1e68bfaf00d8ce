#include "kernels/cuda/gemm.cuh"

namespace ivlite::cuda {

template Status start_gemm<Format::bf16>(const GemmProduct&, int, int, Stream);

}  // namespace ivlite::cuda
