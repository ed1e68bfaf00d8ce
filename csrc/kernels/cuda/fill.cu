// Memory of one repeated word.
#include "intrinsics.h"
#include "kernels/cuda/cuda.h"

namespace ivlite::cuda {

namespace {
constexpr int kThreads = 256, kWords = 4;  // per thread: one transaction
}

IVLITE_KERNEL void fill_words(uint32_t* memory, uint32_t word, int64_t count) {
  const int64_t first = ((int64_t)block_x() * block_threads() + thread_x()) * kWords;
  if (first + kWords <= count)
    store16(memory + first, Bytes16{{word, word, word, word}});
  else
    for (int64_t i = first; i < count; i++) memory[i] = word;
}

Status fill(uint32_t* memory, uint32_t word, int64_t count, Stream stream) {
  if (count == 0) return 0;
  const int64_t per_block = (int64_t)kThreads * kWords;
  return launch(fill_words, Dim3{(unsigned)((count + per_block - 1) / per_block)}, kThreads, 0, stream, memory, word, count);
}

}  // namespace ivlite::cuda
