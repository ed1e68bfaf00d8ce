// Absorbed attention in float32: the f32 cache, and shapes that the tiles of latent.cu do not take. A block is a head of a query.
#include "latent.cuh"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kTokens = 32;

// Queries and sums of a head in shared memory: q (rank and rope), acc (columns), scores and weights of a tile.
struct Head {
  float *q, *acc, *score, *weight;
  int8_t* level;

  __device__ explicit Head(const LatentWork& a) {
    q = shared_memory<float>(), acc = q + a.columns() + a.cache.rope_dim;
    score = acc + a.columns(), weight = score + kTokens, level = (int8_t*)(weight + kTokens);
  }
  static size_t bytes(const LatentWork& a) { return 4 * (size_t)(2 * a.columns() + a.cache.rope_dim + 2 * kTokens) + 256; }
};

template <CacheKind kind>
__device__ void load_query(const LatentWork& a, const Head& head, int64_t row) {
  const int lane = thread_x() % 32;
  for (int part = thread_x() / 32; part < a.parts; part += kWarps) {
    const int n = smaller(a.cache.rank - part * kPart, kPart);
    float v[4];
    for (int i = 0; i < 4; i++) v[i] = lane + 32 * i < n ? a.q_latent[row * a.cache.rank + part * kPart + lane + 32 * i] : 0;
    if (kind == CacheKind::q4) rotate_part(v, n, lane);
    for (int i = 0; i < 4; i++) head.q[part * kPart + lane + 32 * i] = v[i];
  }
  for (int j = thread_x(); j < a.cache.rope_dim; j += kThreads) head.q[a.columns() + j] = a.q_rope[row * a.cache.rope_dim + j];
}

template <CacheKind kind>
IVLITE_KERNEL_OF(kThreads)
plain_kernel(LatentWork a) {
  const DeviceRows c = found(a.cache);
  const int row = block_x(), split = block_y(), thread = thread_x(), lane = thread % 32;
  const int stored = a.stored(a.first + row / a.heads), tiles = (larger(stored, 0) + kTokens - 1) / kTokens;
  if (split >= tiles) {
    if (thread == 0) leave_none(a, row, split);
    return;
  }
  const Head head(a);
  if (kind == CacheKind::q4) fill_levels(head.level, thread, kThreads);
  load_query<kind>(a, head, (int64_t)a.first * a.heads + row);
  for (int j = thread; j < a.columns(); j += kThreads) head.acc[j] = 0;
  float top = -INFINITY, total = 0;
  for (int tile = split; tile < tiles; tile += a.splits) {
    const int first = tile * kTokens, n = smaller(stored - first, kTokens);
    sync_block();
    for (int s = thread / 32; s < n; s += kWarps) {
      float sum = 0;
      for (int j = lane; j < c.rank; j += 32) sum = fmaf(head.q[j], latent_at<kind>(c, first + s, j, head.level), sum);
      for (int j = lane; j < c.rope_dim; j += 32) sum = fmaf(head.q[a.columns() + j], rope_at<kind>(c, first + s, j), sum);
      sum = warp_sum(sum);
      if (lane == 0) head.score[s] = sum * a.scale;
    }
    sync_block();
    const float before = top;
    for (int s = 0; s < n; s++) top = fmaxf(top, head.score[s]);
    const float alpha = top == before ? 1 : expf(before - top);
    if (thread < n) head.weight[thread] = expf(head.score[thread] - top);
    sync_block();
    total *= alpha;
    for (int s = 0; s < n; s++) total += head.weight[s];
    for (int j = thread; j < c.rank; j += kThreads) {
      float sum = head.acc[j] * alpha;
      for (int s = 0; s < n; s++) sum = fmaf(head.weight[s], latent_at<kind>(c, first + s, j, head.level), sum);
      head.acc[j] = sum;
    }
  }
  if (thread == 0) a.top[(int64_t)row * a.splits + split] = top, a.total[(int64_t)row * a.splits + split] = total;
  float* to = a.acc + ((int64_t)split * a.rows() + row) * a.columns();
  for (int j = thread; j < a.columns(); j += kThreads) to[j] = head.acc[j];
}

template <CacheKind kind>
Status run(const LatentWork& a, Stream stream) {
  return launch(plain_kernel<kind>, Dim3{(unsigned)a.rows(), (unsigned)a.splits}, kThreads, Head::bytes(a), stream, a);
}

}  // namespace

Status absorbed_plain(const LatentWork& a, CacheKind kind, Stream stream) {
  switch (kind) {
    case CacheKind::f32: return run<CacheKind::f32>(a, stream);
    case CacheKind::bf16: return run<CacheKind::bf16>(a, stream);
    case CacheKind::q8: return run<CacheKind::q8>(a, stream);
    default: return run<CacheKind::q4>(a, stream);
  }
}

}  // namespace ivlite::cuda
