// The kernels of AVX-VNNI: those of AVX2 without the GEMM path, and dpbusd as the integer product.
#include "kernels/cpu/vec/avx2.h"  // first: the vocabulary of this set

#include "kernels/cpu/elementwise/resize_avx2.h"
#include "kernels/cpu/latent/int16.h"
#include "kernels/cpu/linear/int8_avx2.h"
#include "kernels/cpu/shared.h"
#include "kernels/table.h"

namespace ivlite {
namespace {

struct Dpbusd {
  static constexpr bool kSignedQ8 = false;
  static constexpr int run(int) { return 8; }
  static __m256i start() { return _mm256_setzero_si256(); }
  template <bool>
  static __m256i add(__m256i sum, __m256i w, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sum, w, x);
  }
  static __m256i widen(__m256i sum) { return sum; }
};

uint64_t dpbusd_peak(int64_t iterations) {
  constexpr int kSums = 10, kMacs = 32;
  __m256i sum[kSums], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
#pragma GCC unroll 10
  for (int i = 0; i < kSums; i++) sum[i] = _mm256_setzero_si256();
  const int64_t rounds = (iterations + kSums * kMacs - 1) / (kSums * kMacs);
  for (int64_t n = 0; n < rounds; n++)
#pragma GCC unroll 10
    for (int i = 0; i < kSums; i++) {
      sum[i] = _mm256_dpbusd_avx_epi32(sum[i], a, b);
      vec::touch(sum[i]);
    }
  return (uint64_t)rounds * kSums * kMacs;
}

}  // namespace

void init_avxvnni(KernelTable& t) {
  init_shared(t);
  init_resize_avx2(t);
  init_int8_avx2<Dpbusd>(t);
  init_attention_int16(t);
  init_latent_int16(t);
  t.int8_peak = dpbusd_peak;
}

}  // namespace ivlite
