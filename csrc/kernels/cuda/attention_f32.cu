// The attention of attention.cu in float32 throughout, for models of float weights and whoever asks for exact results. A warp has 4
// queries; its lanes are the keys of a tile, then columns of the values.
#include "cache.cuh"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kEach = 4, kQueries = kWarps * kEach, kKeys = 32, kColumns = 4;

__device__ void attend(float acc[kEach][kColumns], float top[kEach], float total[kEach], const float* q, const float* keys, int pitch,
                       int d, const float* values, int dv, const int64_t visible[kEach], int64_t s0, float scale) {
  const int lane = thread_x() % 32;
  float s[kEach] = {};
  for (int j = 0; j < d; j++) {
    const Float4 x = load_float4(q + kEach * j);
    const float key = keys[lane * pitch + j];
    IVLITE_UNROLL
    for (int i = 0; i < kEach; i++) s[i] = fmaf(x.v[i], key, s[i]);
  }
  IVLITE_UNROLL
  for (int i = 0; i < kEach; i++) {
    const bool seen = s0 + lane < visible[i];
    s[i] *= scale;
    const float before = top[i];
    top[i] = fmaxf(before, warp_max(seen ? s[i] : -INFINITY));
    const float alpha = top[i] == before ? 1 : expf(before - top[i]);
    s[i] = seen ? expf(s[i] - top[i]) : 0;
    total[i] = fmaf(total[i], alpha, warp_sum(s[i]));
    IVLITE_UNROLL
    for (int c = 0; c < kColumns; c++) acc[i][c] *= alpha;
  }
  for (int k = 0; k < kKeys; k++) {
    float p[kEach];
    IVLITE_UNROLL
    for (int i = 0; i < kEach; i++) p[i] = shuffle(s[i], k);
    IVLITE_UNROLL
    for (int c = 0; c < kColumns; c++) {
      if (lane + 32 * c >= dv) break;
      const float value = values[k * dv + lane + 32 * c];
      IVLITE_UNROLL
      for (int i = 0; i < kEach; i++)
        if (s0 + k < visible[i]) acc[i][c] = fmaf(p[i], value, acc[i][c]);  // what is not seen may be NaN
    }
  }
}

IVLITE_KERNEL_OF(kThreads) exact_kernel(AttentionWork a) {
  const int64_t block = grid_x() - 1 - block_x(), h = block_y(), segment = block_z(), first = segment * a.queries, from = segment * a.keys;
  const int thread = thread_x(), lane = thread % 32, d = (int)(a.d + a.d2), dv = (int)a.dv, pitch = d | 1;
  float *q = shared_memory<float>(), *keys = q + kQueries * d, *values = keys + kKeys * pitch;
  const int64_t mine = block * kQueries + thread / 32 * kEach, last = (block + 1) * kQueries;
  const int64_t end = a.causal && a.first_visible + last < a.keys ? a.first_visible + last : a.keys;
  if (end <= 0 && a.continues && a.unfinished) return;
  float* my_q = q + thread / 32 * kEach * d;
  float acc[kEach][kColumns], top[kEach], total[kEach];
  int64_t visible[kEach];
  IVLITE_UNROLL
  for (int i = 0; i < kEach; i++) {
    const int64_t t = mine + i, sees = a.first_visible + t + 1;
    const bool exists = t < a.queries, kept = a.continues && exists;
    visible[i] = !a.causal || sees > a.keys ? a.keys : sees;
    for (int j = lane; j < d; j += 32)
      my_q[kEach * j + i] = !exists   ? 0
                            : j < a.d ? a.q[(first + t) * a.ld_q + h * a.head_q + j]
                                      : a.q2[(first + t) * a.ld_q2 + h * a.head_q2 + j - a.d];
    top[i] = kept ? a.m[t * a.heads + h] : -INFINITY, total[i] = kept ? a.l[t * a.heads + h] : 0;
    IVLITE_UNROLL
    for (int c = 0; c < kColumns; c++) acc[i][c] = kept && lane + 32 * c < dv ? a.out[t * a.ld_out + h * a.head_out + lane + 32 * c] : 0;
  }
  for (int64_t s0 = 0; s0 < end; s0 += kKeys) {
    sync_block();
    for (int r = thread / 32; r < kKeys; r += kWarps) {
      const int64_t s = s0 + r;
      const bool exists = s < a.keys;
      for (int j = lane; j < d; j += 32)
        keys[r * pitch + j] = !exists   ? 0
                              : j < a.d ? ((const float*)a.k)[(from + s) * a.ld_k + h * a.head_k + j]
                                        : ((const float*)a.k2)[(from + s) * a.ld_k2 + j - a.d];
      for (int j = lane; j < dv; j += 32) values[r * dv + j] = exists ? ((const float*)a.v)[(from + s) * a.ld_v + h * a.head_v + j] : 0;
    }
    sync_block();
    attend(acc, top, total, my_q, keys, pitch, d, values, dv, visible, s0, a.scale);
  }
  IVLITE_UNROLL
  for (int i = 0; i < kEach; i++) {
    const int64_t t = mine + i;
    if (t >= a.queries) continue;
    if (a.unfinished && lane == 0) a.m[t * a.heads + h] = top[i], a.l[t * a.heads + h] = total[i];
    IVLITE_UNROLL
    for (int c = 0; c < kColumns; c++)
      if (lane + 32 * c < dv)
        a.out[(first + t) * a.ld_out + h * a.head_out + lane + 32 * c] = a.unfinished    ? acc[i][c]
                                                                         : total[i] == 0 ? 0
                                                                                         : acc[i][c] / total[i];
  }
}

}  // namespace

Status attention_f32(const AttentionWork& a, Stream stream) {
  if (a.queries == 0) return 0;
  const int64_t d = a.d + a.d2;
  if (a.dv > 32 * kColumns) return 1;
  const size_t bytes = 4 * (size_t)(kQueries * d + kKeys * ((d | 1) + a.dv));
  return launch(exact_kernel, Dim3{(unsigned)((a.queries + kQueries - 1) / kQueries), (unsigned)a.heads, (unsigned)a.segments}, kThreads,
                bytes, stream, a);
}

}  // namespace ivlite::cuda
