// Absorbed attention: its launches, and the kernel that merges the sums of the splits, in their order, with a query's own row.
#include "latent.cuh"
#include "kernels/cuda/quantize.cuh"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr float kNothing = -1;  // the weight of a split that saw no token

// What all threads of a block add up to, the same in all of them; `slots` are kWarps floats of this call alone.
__device__ float block_sum(float x, float* slots) {
  x = warp_sum(x);
  if (thread_x() % 32 == 0) slots[thread_x() / 32] = x;
  sync_block();
  float sum = 0;
  for (int w = 0; w < kWarps; w++) sum += slots[w];
  return sum;
}

__device__ float block_max(float x, float* slots) {
  x = warp_max(x);
  if (thread_x() % 32 == 0) slots[thread_x() / 32] = x;
  sync_block();
  for (int w = 0; w < kWarps; w++) x = fmaxf(x, slots[w]);
  return x;
}

// The score of a row with the latent and key of its query's token as they were given.
__device__ float own_score(const LatentWork& a, int64_t row, int64_t given, float* slots) {
  const int rank = a.cache.rank, rope = a.cache.rope_dim;
  float sum = 0;
  for (int j = thread_x(); j < rank; j += kThreads) sum = fmaf(a.q_latent[row * rank + j], a.given_latent[given * rank + j], sum);
  for (int j = thread_x(); j < rope; j += kThreads) sum = fmaf(a.q_rope[row * rope + j], a.given_rope[given * rope + j], sum);
  return block_sum(sum, slots) * a.scale;
}

// Rounds a row's part, in shared memory, by a warp; behind the last part, the zeros that fill up the row. Null: all zeros.
__device__ void store_part(const LatentWork& a, int row, int part, const float* from) {
  const int token = a.first + row / a.heads, head = row % a.heads, rank = a.cache.rank, words = 8 * (int)int8_groups(rank);
  for (int i = kPart / 4 * part + thread_x(); i < (part + 1 == a.parts ? words : kPart / 4 * (part + 1)); i += 32)
    round_word(a.codes, head, token, i, from ? rank : 0, [&](int64_t column) { return from[column - part * kPart]; });
}

// A block is a row and 128 columns.
IVLITE_KERNEL_OF(kThreads) merge_kernel(LatentWork a, int rotated) {
  const int row = block_x(), part = block_y(), thread = thread_x(), lane = thread % 32;
  if (row >= a.rows()) {  // a token that does not exist
    if (thread < 32) store_part(a, row, part, nullptr);
    return;
  }
  const int64_t query = (int64_t)a.first * a.heads + row, given = a.pending - a.tokens + a.first + row / a.heads;
  float *sums = shared_memory<float>(), *slots = sums + kWarps * kPart, *weight = slots + 3 * kWarps;
  const float own = a.given_latent ? own_score(a, query, given, slots) : -INFINITY;
  const float *tops = a.top + (int64_t)row * a.splits, *totals = a.total + (int64_t)row * a.splits;

  float top = own;
  for (int p = thread; p < a.splits; p += kThreads) top = fmaxf(top, tops[p]);
  top = block_max(top, slots + kWarps);
  float total = 0;
  for (int p = thread; p < a.splits; p += kThreads) {
    weight[p] = totals[p] == 0 ? kNothing : expf(tops[p] - top);
    if (totals[p] != 0) total = fmaf(totals[p], weight[p], total);
  }
  const float own_weight = a.given_latent ? expf(own - top) : 0;
  total = block_sum(total, slots + 2 * kWarps) + own_weight;

  float v[4] = {};
  for (int p = thread / 32; p < a.splits; p += kWarps) {
    if (weight[p] == kNothing) continue;
    const Float4 x = load_float4(a.acc + ((int64_t)p * a.rows() + row) * a.columns() + part * kPart + 4 * lane);
    IVLITE_UNROLL
    for (int i = 0; i < 4; i++) v[i] = fmaf(weight[p], x.v[i], v[i]);
  }
  store_float4(sums + thread / 32 * kPart + 4 * lane, {v[0], v[1], v[2], v[3]});
  sync_block();
  if (thread >= 32) return;
  const int n = smaller(a.cache.rank - part * kPart, kPart);
  IVLITE_UNROLL
  for (int i = 0; i < 4; i++) {
    v[i] = 0;
    for (int w = 0; w < kWarps; w++) v[i] += sums[w * kPart + lane + 32 * i];
  }
  if (rotated) rotate_part(v, n, lane);
  sync_warp();  // the sums are read: values take their place
  for (int i = 0; i < 4; i++) {
    const int j = part * kPart + lane + 32 * i;
    if (lane + 32 * i >= n) continue;
    const float mine = a.given_latent ? own_weight * a.given_latent[given * a.cache.rank + j] : 0, value = (v[i] + mine) / total;
    if (a.codes.codes)
      sums[lane + 32 * i] = value;
    else
      a.out[query * a.cache.rank + j] = value;
  }
  sync_warp();
  if (a.codes.codes) store_part(a, row, part, sums);
}

Status merge(const LatentWork& a, CacheKind kind, Stream stream) {
  const size_t bytes = 4 * (size_t)(kWarps * kPart + 3 * kWarps + a.splits);
  return launch(merge_kernel, Dim3{(unsigned)(a.rows() + a.padding), (unsigned)a.parts}, kThreads, bytes, stream, a,
                (int)(kind == CacheKind::q4));
}

int parts_of(int64_t rank) { return (int)((rank + kPart - 1) / kPart); }

}  // namespace

int64_t absorbed_query_floats(int64_t heads, int64_t rank, int64_t splits) { return heads * splits * (parts_of(rank) * kPart + 2); }

// Queries are taken in as many launches as the workspace asks for: what a query sees in which order does not depend on it.
Status absorbed_attention(const AbsorbedArgs& a, Stream stream) {
  if (a.tokens == 0) return 0;
  const int64_t most = a.workspace_floats / absorbed_query_floats(a.heads, a.cache.rank, a.splits);
  if (most == 0) return 1;
  LatentWork work{};
  work.q_latent = a.q_latent, work.q_rope = a.q_rope, work.given_latent = a.given_latent, work.given_rope = a.given_rope;
  work.length = a.length, work.out = a.out, work.codes = a.codes, work.cache = device_rows(a.cache);
  work.tokens = (int)a.tokens, work.heads = (int)a.heads, work.splits = (int)a.splits, work.pending = (int)a.pending;
  work.parts = parts_of(a.cache.rank), work.scale = a.scale;
  for (int64_t first = 0; first < a.tokens; first += most) {
    work.first = (int)first, work.queries = (int)(a.tokens - first < most ? a.tokens - first : most);
    work.acc = a.workspace;
    work.top = work.acc + (int64_t)work.splits * work.rows() * work.columns();
    work.total = work.top + (int64_t)work.splits * work.rows();
    if (a.codes.codes && first + work.queries == a.tokens) work.padding = (int)((int8_tokens(a.tokens) - a.tokens) * a.heads);
    const bool tiles = a.cache.kind != CacheKind::f32 && work.parts <= kTileParts && a.cache.rope_dim <= kPart;
    Status status = tiles ? absorbed_tiles(work, a.cache.kind, stream) : absorbed_plain(work, a.cache.kind, stream);
    if (status == 0) status = merge(work, a.cache.kind, stream);
    if (status != 0) return status;
  }
  return 0;
}

}  // namespace ivlite::cuda
