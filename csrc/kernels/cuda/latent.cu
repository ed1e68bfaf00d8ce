// Absorbed attention over the latent cache on tensor cores: 16 or 32 heads of a query against tiles of tokens.
//
// Warp w owns columns [128 w, 128 w + 128) of the latents, the last warp the rotary part. Of a tile it makes its part of the scores; the
// parts are added in order, softmax runs over rows (a head each), and each warp multiplies the weights with its columns: a tile is read
// once from memory for both products. Latents in 8 bits, and those of q4 once opened, stay integers: queries are split in two int8, 15 bits
// together, per head and 128 columns; as values, codes become half, and a token's scale is part of its softmax weight.
#include "latent_products.cuh"

namespace ivlite::cuda {
namespace {

// Where things lie in shared memory, in bytes.
struct Layout {
  int latent, rope;                    // strides of a token's row
  int stage_rope, stage_scale, stage;  // of a tile as it is copied: keys and scales begin there; its size
  int opened;                          // q4: a tile as q8 would have it, codes of latents and then keys as half
  int partial, weights, state, level, key_unit, scale;
  int bytes;
};

constexpr int tile_tokens(CacheKind kind) { return kind == CacheKind::bf16 ? 16 : 32; }
constexpr int align16(int n) { return (n + 15) / 16 * 16; }

// Rows are an odd number of 16 bytes apart: 8 of them lie in different banks.
Layout layout_of(CacheKind kind, const DeviceRows& c, int parts, int heads) {
  const int tokens = tile_tokens(kind), wide = kind == CacheKind::bf16 ? 2 : 1, packed = kind == CacheKind::q4;
  Layout l{};
  l.latent = parts * kPart * wide + 16, l.rope = kPart * 2 + 16;
  l.stage_rope = packed ? align16(tokens * c.latent_bytes) : tokens * l.latent;
  l.stage_scale = l.stage_rope + (packed ? align16(tokens * c.rope_bytes) : tokens * l.rope);
  l.stage = align16(l.stage_scale + tokens * c.scales * 4);
  l.opened = 2 * l.stage;
  l.partial = l.opened + (packed ? tokens * (l.latent + l.rope) : 0);
  l.weights = l.partial + (parts + 1) * heads * (tokens + 8) * 4;
  l.state = l.weights + heads * (tokens + 8) * 2;
  l.level = l.state + 7 * heads * 4;
  l.key_unit = l.level + (packed ? 256 : 0);
  l.scale = l.key_unit + (packed ? 4 * tokens : 0);
  l.bytes = l.scale + (parts + 1) * heads * 4;
  return l;
}

// Of a scale; 0 where it would overflow: then codes are zeros, and a NaN beside it stays one.
IVLITE_DEVICE float inverse(float scale) { return scale > 1e-36f ? 1 / scale : 0; }

// Copies `valid` of `count` rows, the others become zeros, each warp some rows.
__device__ void copy_rows(uint8_t* to, int stride, const uint8_t* from, int bytes, int valid, int count) {
  const int lane = thread_x() % 32, warps = block_threads() / 32;
  IVLITE_ROLLED  // copies in flight need no registers: those are the sums'
      for (int r = thread_x() / 32; r < count; r += warps) {
    uint8_t* row = to + r * stride;
    const uint8_t* source = from + (r < valid ? (int64_t)r * bytes : 0);
    if (bytes % 16 == 0)
      IVLITE_ROLLED for (int i = lane * 16; i < bytes; i += 512) copy_async16(row + i, source + i, r < valid);
    else
      IVLITE_ROLLED for (int i = lane; i < bytes; i += 32) row[i] = r < valid ? source[i] : 0;
  }
}

// Copies bytes of rows that follow one another.
__device__ void copy_bytes(uint8_t* to, const uint8_t* from, int bytes) {
  IVLITE_ROLLED
  for (int i = thread_x() * 16; i + 16 <= bytes; i += block_threads() * 16) copy_async16(to + i, from + i);
  if (thread_x() < bytes % 16) to[bytes / 16 * 16 + thread_x()] = from[bytes / 16 * 16 + thread_x()];
}

// One block's view of its work.
template <CacheKind kind, int M>
struct Block {
  static constexpr int kTokens = tile_tokens(kind), kHeads = 16 * M, kPitch = kTokens + 8, kLanes = kTokens / 4;
  static constexpr bool kCodes = kind != CacheKind::bf16, kPacked = kind == CacheKind::q4;
  const LatentWork& a;
  const Layout& l;
  DeviceRows rows;  // of the cache
  uint8_t* shared;
  int stored;

  __device__ float* state(int which) const { return (float*)(shared + l.state) + which * kHeads; }  // see softmax
  __device__ float* alpha() const { return state(6); }
  __device__ float* key_unit() const { return (float*)(shared + l.key_unit); }
  __device__ uint8_t* stage(int i) const { return shared + i % 2 * l.stage; }
  __device__ const uint8_t* latents(int i) const { return kPacked ? shared + l.opened : stage(i); }
  __device__ const uint8_t* keys(int i) const { return kPacked ? shared + l.opened + kTokens * l.latent : stage(i) + l.stage_rope; }
  __device__ const float* scales(int i) const { return (const float*)(stage(i) + l.stage_scale); }

  // Begins to copy the tile of tokens [s, s + kTokens).
  __device__ void copy(int i, int s) const {
    const DeviceRows& c = rows;
    const int valid = smaller(stored - s, kTokens);
    uint8_t* to = stage(i);
    if (kPacked) {
      copy_bytes(to, c.latent + (int64_t)s * c.latent_bytes, valid * c.latent_bytes);
      copy_bytes(to + l.stage_rope, c.rope + (int64_t)s * c.rope_bytes, valid * c.rope_bytes);
    } else {
      copy_rows(to, l.latent, c.latent + (int64_t)s * c.latent_bytes, c.latent_bytes, valid, kTokens);
      copy_rows(to + l.stage_rope, l.rope, c.rope + (int64_t)s * c.rope_bytes, c.rope_bytes, valid, kTokens);
    }
    float* scale = (float*)(to + l.stage_scale);
    IVLITE_ROLLED
    for (int j = thread_x(); kCodes && j < kTokens * c.scales; j += block_threads())
      scale[j] = j < valid * c.scales ? c.scale[(int64_t)s * c.scales + j] : 0;
    commit_copies();
  }

  // q4: codes of the tile as int8, keys as half in units of the largest scale of a token's.
  __device__ void open(int i) const {
    const DeviceRows& c = a.cache;
    const int8_t* level = (const int8_t*)(shared + l.level);
    const int lane = thread_x() % 32, warps = block_threads() / 32, bytes = (c.rank + 1) / 2;
    IVLITE_ROLLED
    for (int t = thread_x() / 32; t < kTokens; t += warps) {
      const uint8_t *from = stage(i) + t * c.latent_bytes, *table = from + bytes;
      uint8_t* to = shared + l.opened + t * l.latent;
      uint16_t* key = (uint16_t*)(shared + l.opened + kTokens * l.latent + t * l.rope);
      IVLITE_ROLLED
      for (int b = lane; b < bytes; b += 32) {
        const int run = b / (kRun / 2) * kRun, n = smaller(c.rank - run, kRun), half = (n + 1) / 2, low = run + b % (kRun / 2);
        const int high = low + half, code = from[b];
        to[low] = (uint8_t)level[16 * (table[low / 32] >> low / 16 % 2 * 4 & 15) + (code & 15)];
        if (high < run + n) to[high] = (uint8_t)level[16 * (table[high / 32] >> high / 16 % 2 * 4 & 15) + (code >> 4)];
      }
      const int8_t* codes = (const int8_t*)stage(i) + l.stage_rope + t * c.rope_bytes;
      const float* scale = scales(i) + t * c.scales + 1;
      const float unit = warp_max(lane + 1 < c.scales ? fabsf(scale[lane]) : 0);
      IVLITE_ROLLED
      for (int j = lane; j < c.rope_dim; j += 32) key[j] = to_half((float)codes[j] * (scale[j / kGroup] * inverse(unit)));
      if (lane == 0) key_unit()[t] = unit;
    }
  }

  __device__ void load_queries(Queries<M>& q, int head0, int64_t row, int warp) const {
    const int heads = smaller(a.heads - head0, kHeads);
    if (warp == a.parts) {
      const float* from = a.q_rope + row * a.cache.rope_dim;
      load_half<M>(q, from, a.cache.rope_dim, heads, a.cache.rope_dim);
      return;
    }
    const float* from = a.q_latent + row * a.cache.rank + warp * kPart;
    const int n = smaller(a.cache.rank - warp * kPart, kPart);
    if constexpr (kCodes)
      load_int8<M>(q, from, a.cache.rank, heads, n, kPacked);
    else
      load_half<M>(q, from, a.cache.rank, heads, n);
  }

  // This warp's part of the scores of tile i.
  __device__ void scores(const Queries<M>& q, int i, int warp) const {
    const int lane = thread_x() % 32;
    float* to = (float*)(shared + l.partial) + warp * kHeads * kPitch + lane / 4 * kPitch + 2 * (lane % 4);
    IVLITE_UNROLL
    for (int n = 0; n < kTokens; n += 8) {
      float s[M][4];
      if (warp == a.parts) {
        scores_half<M>(s, q, keys(i) + n * l.rope, l.rope);
      } else {
        const uint8_t* tile = latents(i) + n * l.latent + warp * kPart * (kCodes ? 1 : 2);
        if constexpr (kCodes)
          scores_int8<M>(s, q, tile, l.latent);
        else
          scores_half<M>(s, q, tile, l.latent);
      }
      IVLITE_UNROLL
      for (int m = 0; m < M; m++) {
        float* row = to + 16 * m * kPitch + n;
        store_float2(row, s[m][0], s[m][1]);
        store_float2(row + 8 * kPitch, s[m][2], s[m][3]);
      }
    }
  }

  // Scores to weights of tile i, which begins at token s. A head's state is its maximum, its sum and the largest scale so far, of
  // 2 x 3 arrays: those of odd tiles follow from those of even ones and back.
  __device__ void softmax(int i, int s) const {
    IVLITE_ROLLED
    for (int item = thread_x(); item < kHeads * kLanes; item += block_threads()) {
      // Where 8 lanes have two rows, these are two apart: rows that follow one another share banks.
      const int order = item / kLanes, at = item % kLanes * 4,
                row = kLanes == 4 ? (order & ~3) | (order & 1) << 1 | (order >> 1 & 1) : order;
      const float* from = (const float*)(shared + l.partial) + row * kPitch + at;
      float x[4], unit[4], top = -INFINITY, size = 0;
      const Float4 rope = load_float4(from + a.parts * kHeads * kPitch);
      Float4 sum = load_float4(from);
      for (int w = 1; w < a.parts; w++) {
        const Float4 more = load_float4(from + w * kHeads * kPitch);
        IVLITE_UNROLL
        for (int e = 0; e < 4; e++) sum.v[e] += more.v[e];
      }
      IVLITE_UNROLL
      for (int e = 0; e < 4; e++) {
        unit[e] = kCodes ? scales(i)[(at + e) * a.cache.scales] : 1;
        const float key = kPacked ? rope.v[e] * key_unit()[at + e] : rope.v[e];
        x[e] = (kCodes ? fmaf(sum.v[e], unit[e], key) : sum.v[e] + key) * a.scale;
        if (s + at + e < stored) top = fmaxf(top, x[e]), size = fmaxf(size, fabsf(unit[e]));
      }
      IVLITE_UNROLL
      for (int mask = 1; mask < kLanes; mask *= 2) top = fmaxf(top, shuffle_xor(top, mask)), size = fmaxf(size, shuffle_xor(size, mask));
      const int now = i % 2 * 3, next = 3 - now;
      const float before = state(now)[row], size_before = state(now + 2)[row];
      top = fmaxf(top, before), size = fmaxf(size, size_before);
      const float alpha_here = top == before ? 1 : fast_exp(before - top);
      float total = 0, weight[4];
      IVLITE_UNROLL
      for (int e = 0; e < 4; e++) {
        const bool seen = s + at + e < stored;
        const float p = seen ? fast_exp(x[e] - top) : 0;
        total += p;
        weight[e] = seen ? p * (kCodes ? unit[e] * inverse(size) : 1) * kWeightUnit : 0;
      }
      IVLITE_UNROLL
      for (int mask = 1; mask < kLanes; mask *= 2) total += shuffle_xor(total, mask);
      store8(shared + l.weights + (row * kPitch + at) * 2, {{pack_half(weight[0], weight[1]), pack_half(weight[2], weight[3])}});
      if (at) continue;
      state(next)[row] = top, state(next + 1)[row] = fmaf(state(now + 1)[row], alpha_here, total), state(next + 2)[row] = size;
      alpha()[row] = size_before == size ? alpha_here : alpha_here * (size_before * inverse(size));
    }
  }

  // acc = alpha acc + weights x values of tile i.
  __device__ void values(float acc[M][16][4], int i, int warp) const {
    const int lane = thread_x() % 32;
    float factor[M][2];
    bool changed = false;
    IVLITE_UNROLL
    for (int m = 0; m < M; m++) IVLITE_UNROLL
    for (int half = 0; half < 2; half++) {
      factor[m][half] = alpha()[16 * m + 8 * half + lane / 4];
      changed |= factor[m][half] != 1;
    }
    if (any_lane(changed)) IVLITE_UNROLL
    for (int m = 0; m < M; m++) IVLITE_UNROLL
    for (int j = 0; j < 16; j++) IVLITE_UNROLL
    for (int e = 0; e < 4; e++) acc[m][j][e] *= factor[m][e / 2];
    const uint8_t* tile = latents(i) + warp * kPart * (kCodes ? 1 : 2);
    IVLITE_UNROLL
    for (int k = 0; k < kTokens; k += 16) {
      uint32_t p[M][4];
      IVLITE_UNROLL
      for (int m = 0; m < M; m++) ldmatrix_x4(p[m], shared + l.weights + ((16 * m + lane % 16) * kPitch + k + lane / 16 * 8) * 2);
      add_values<M, kCodes>(acc, p, tile + k * l.latent, l.latent);
    }
  }

  // Leaves the sums of `heads` rows from `row` on.
  __device__ void leave(const float acc[M][16][4], int i, int row, int heads, int split, int warp) const {
    const int lane = thread_x() % 32, now = i % 2 * 3;
    for (int h = thread_x(); h < heads; h += block_threads()) {
      a.top[(int64_t)(row + h) * a.splits + split] = state(now)[h];
      a.total[(int64_t)(row + h) * a.splits + split] = state(now + 1)[h];
    }
    if (warp == a.parts) return;
    IVLITE_UNROLL
    for (int m = 0; m < M; m++) IVLITE_UNROLL
    for (int half = 0; half < 2; half++) {
      const int h = 16 * m + 8 * half + lane / 4;
      if (h >= heads) continue;
      const float unit = (kCodes ? state(now + 2)[h] : 1) / kWeightUnit;
      float* to = a.acc + ((int64_t)split * a.rows() + row + h) * a.columns() + warp * kPart;
      IVLITE_UNROLL
      for (int j = 0; j < 16; j += 2) {
        const float *first = acc[m][j] + 2 * half, *second = acc[m][j + 1] + 2 * half;
        if (kCodes) {
          store_float4(to + 8 * j + 4 * (lane % 4), {first[0] * unit, second[0] * unit, first[1] * unit, second[1] * unit});
        } else {
          store_float2(to + 8 * j + 2 * (lane % 4), first[0] * unit, first[1] * unit);
          store_float2(to + 8 * j + 8 + 2 * (lane % 4), second[0] * unit, second[1] * unit);
        }
      }
    }
  }
};

template <CacheKind kind, int M>
IVLITE_KERNEL_OF(32 * (kTileParts + 1))
absorbed_kernel(LatentWork a, Layout l) {
  using Of = Block<kind, M>;
  const int groups = (a.heads + Of::kHeads - 1) / Of::kHeads, t = block_x() / groups, head0 = block_x() % groups * Of::kHeads;
  const int split = block_y(), warp = thread_x() / 32, row = t * a.heads + head0, heads = smaller(a.heads - head0, Of::kHeads);
  const Of of{a, l, found(a.cache), shared_memory<uint8_t>(), a.stored(a.first + t)};
  const int tiles = (larger(of.stored, 0) + Of::kTokens - 1) / Of::kTokens;
  if (split >= tiles) {
    for (int h = thread_x(); h < heads; h += block_threads()) leave_none(a, row + h, split);
    return;
  }
  if (Of::kPacked || a.cache.rank % kPart || a.cache.rope_dim % kPart)  // columns that do not exist, and those of tokens that do not
    for (int i = thread_x() * 16; i < l.partial; i += block_threads() * 16) store16(of.shared + i, {});
  for (int h = thread_x(); h < Of::kHeads; h += block_threads()) of.state(0)[h] = -INFINITY, of.state(1)[h] = of.state(2)[h] = 0;
  if (Of::kPacked) fill_levels((int8_t*)(of.shared + l.level), thread_x(), block_threads());
  sync_block();
  of.copy(0, split * Of::kTokens);
  Queries<M> q;
  q.scale = (float*)(of.shared + l.scale) + warp * Of::kHeads;
  of.load_queries(q, head0, (int64_t)(a.first + t) * a.heads + head0, warp);
  float acc[M][16][4] = {};
  int i = 0;
  for (int tile = split; tile < tiles; tile += a.splits, i++) {
    wait_copies<0>();
    sync_block();
    if (tile + a.splits < tiles) of.copy(i + 1, (tile + a.splits) * Of::kTokens);
    if (Of::kPacked) {
      of.open(i);
      sync_block();
    }
    of.scores(q, i, warp);
    sync_block();
    of.softmax(i, tile * Of::kTokens);
    sync_block();
    if (warp < a.parts) of.values(acc, i, warp);
  }
  of.leave(acc, i, row, heads, split, warp);
}

template <CacheKind kind, int M>
Status run(const LatentWork& a, Stream stream) {
  const Layout l = layout_of(kind, a.cache, a.parts, 16 * M);
  const int groups = (a.heads + 16 * M - 1) / (16 * M);
  const Dim3 grid{(unsigned)(a.queries * groups), (unsigned)a.splits};
  return launch(absorbed_kernel<kind, M>, grid, 32 * (a.parts + 1), (size_t)l.bytes, stream, a, l);
}

// 32 heads read a tile once where 16 read it twice. Opening q4 beside the sums of 32 takes more registers than there are.
template <CacheKind kind>
Status run_kind(const LatentWork& a, Stream stream) {
  if constexpr (kind != CacheKind::q4)
    if (a.heads > 16 && layout_of(kind, a.cache, a.parts, 32).bytes <= shared_limit()) return run<kind, 2>(a, stream);
  return run<kind, 1>(a, stream);
}

}  // namespace

Status absorbed_tiles(const LatentWork& a, CacheKind kind, Stream stream) {
  switch (kind) {
    case CacheKind::bf16: return run_kind<CacheKind::bf16>(a, stream);
    case CacheKind::q8: return run_kind<CacheKind::q8>(a, stream);
    default: return run_kind<CacheKind::q4>(a, stream);
  }
}

}  // namespace ivlite::cuda
