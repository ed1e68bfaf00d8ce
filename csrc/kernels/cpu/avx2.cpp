// The kernels of AVX2 + FMA + F16C, and the integer product of its linear layers.
#include "kernels/table.h"
#include "kernels/cpu/vec/avx2.h"

#include "kernels/cpu/shared.h"

#include "kernels/cpu/linear/int8.h"

#include "kernels/cpu/linear/int8_avx2.h"

#include "kernels/cpu/linear/unpack.h"

namespace ivlite {
namespace {

// maddubs: pairs of products in int16. A pair is at most 2 x 127 x the largest code, and as many pairs are added as fit.
// It wants one unsigned operand: for signed weights it takes |w|, and the activation gets w's sign.
struct Maddubs {
  static constexpr bool kSignedQ8 = true;
  static constexpr int run(int max) { return max == 255 ? 1 : 32767 / (2 * 127 * max); }
  static __m256i start() { return _mm256_setzero_si256(); }
  template <bool kSigned>
  static __m256i add(__m256i sum, __m256i w, __m256i x) {
    return _mm256_add_epi16(sum, kSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x));
  }
  static __m256i widen(__m256i sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
};

}  // namespace
}  // namespace ivlite

#include "kernels/cpu/linear/unpack_avx2.h"

#include "kernels/cpu/latent/int16.h"

namespace ivlite {

void init_avx2(KernelTable& t) {
  init_shared(t);
  init_int8_avx2<Maddubs>(t);
  init_unpack_avx2(t);
  t.latent_attention[(int)CacheKind::q8] = latent_int16;
}

}  // namespace ivlite
