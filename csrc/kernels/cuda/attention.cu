// Softmax attention of many queries on tensor cores: the expanded form of latent attention and that of the vision tower. Operands are
// half, sums float32. A block is 64 or 128 queries of one head, a warp 16 of them; tiles of keys pass through shared memory, the next one
// is copied while one is used.
#include "cache.cuh"
#include "kernels/cuda/half.cuh"

namespace ivlite::cuda {
namespace {

constexpr int kPackThreads = 256;
constexpr float kWeightBits = 15;  // softmax weights are halves in units of 2^-15 of the largest, so that small ones keep their bits

// Bytes between rows of n elements in shared memory: an odd number of 16, so that 8 rows lie in different banks.
constexpr int pitch(int n) { return 2 * n + (n / 8 % 2 ? 0 : 16); }

// Keys of K columns (those of k and k2, padded), values of V columns, tiles of N keys. Where operands are narrow, several small blocks
// share a processor: one computes weights while another multiplies.
template <int K, int V, int N>
struct Tile {
  static constexpr int kThreads = K > 128 ? 256 : 128, kQueries = kThreads / 2, kBlocks = K > 128 ? 1 : K > 80 ? 2 : 3;
  static constexpr int kPitch = pitch(K), vPitch = pitch(V), values = N * kPitch, bytes = values + N * vPitch;
};

// An array of rows of halves, and whether 16 bytes of it can be copied together.
struct Rows {
  const uint16_t* from;
  int stride, width;

  __device__ Rows(const void* data, int64_t stride, int64_t width, int64_t offset)
      : from((const uint16_t*)data + (data ? offset : 0)), stride((int)stride), width(data ? (int)width : 0) {}
  __device__ bool whole() const { return width % 8 == 0 && stride % 8 == 0 && (size_t)from % 16 == 0; }
};

// Begins to copy row s of a, columns of `lane` and every 32nd piece after it; a row that does not exist becomes zeros.
IVLITE_DEVICE void copy_row(uint8_t* to, const Rows& a, int s, bool exists, bool whole, int lane) {
  const uint16_t* row = a.from + (exists ? (int64_t)s * a.stride : 0);
  if (whole)
    for (int i = 8 * lane; i < a.width; i += 256) copy_async16(to + 2 * i, row + i, exists);
  else
    for (int i = lane; i < a.width; i += 32) ((uint16_t*)to)[i] = exists ? row[i] : 0;
}

// Two values, zero where they are not finite; `ones` has 1 there.
IVLITE_DEVICE uint32_t finite(uint32_t pair, uint32_t& ones) {
  const uint32_t low = (pair & 0x7c00u) == 0x7c00u ? 0xffffu : 0, high = (pair & 0x7c000000u) == 0x7c000000u ? 0xffff0000u : 0;
  ones = (low | high) & 0x3c003c00u;
  return pair & ~(low | high);
}

// A head's queries against its keys; the state of a warp's 16 queries, of which a thread has rows lane / 4 and lane / 4 + 8.
template <int K, int V, int N>
struct Warp {
  using At = Tile<K, V, N>;
  uint32_t q[K / 16][4];
  float acc[V / 8][4];
  float top[2], total[2];

  // Column c of query row i, in units in which its scores are exponents of 2.
  static __device__ float query(const AttentionWork& a, int i, int h, int64_t first, int c) {
    if (i >= a.queries || c >= a.d + a.d2) return 0;
    const float x = c < a.d ? a.q[(first + i) * a.ld_q + h * a.head_q + c] : a.q2[(first + i) * a.ld_q2 + h * a.head_q2 + c - a.d];
    return in_half_range(x * (a.scale * 1.44269504f));
  }

  __device__ void load(const AttentionWork& a, int q0, int h, int64_t first) {
    const int lane = thread_x() % 32;
    IVLITE_UNROLL
    for (int k = 0; k < K / 16; k++) IVLITE_UNROLL
    for (int r = 0; r < 4; r++) {
      const int i = q0 + lane / 4 + r % 2 * 8;
      const int c = 16 * k + r / 2 * 8 + 2 * (lane % 4);
      q[k][r] = pack_half(query(a, i, h, first, c), query(a, i, h, first, c + 1));
    }
    IVLITE_UNROLL
    for (int half = 0; half < 2; half++) {
      const int i = q0 + lane / 4 + 8 * half;
      const bool kept = a.continues && i < a.queries;
      top[half] = kept ? a.m[i * a.heads + h] : -INFINITY;
      total[half] = kept && lane % 4 == 0 ? a.l[i * a.heads + h] : 0;  // the sum of four lanes
      IVLITE_UNROLL
      for (int j = 0; j < V / 8; j++) IVLITE_UNROLL
      for (int e = 0; e < 2; e++) {
        const int c = 8 * j + 2 * (lane % 4) + e;
        acc[j][2 * half + e] = kept && c < a.dv ? a.out[i * a.ld_out + h * a.head_out + c] : 0;
      }
    }
  }

  // The tile of keys s0 on, of which the thread's rows see those before visible[0] and visible[1].
  __device__ void attend(const uint8_t* tile, int s0, const int visible[2]) {
    const int lane = thread_x() % 32;
    float s[N / 8][4] = {};
    const uint8_t* keys = tile + (lane / 16 * 8 + lane % 8) * At::kPitch + lane / 8 % 2 * 16;
    IVLITE_UNROLL
    for (int k = 0; k < K / 16; k++) IVLITE_UNROLL
    for (int n = 0; n < N / 8; n += 2) {
      uint32_t b[4];
      ldmatrix_x4(b, keys + 8 * n * At::kPitch + 32 * k);
      mma_f16(s[n], q[k], b);
      mma_f16(s[n + 1], q[k], b + 2);
    }
    if (any_lane(visible[0] < s0 + N || visible[1] < s0 + N)) {
      weigh<true>(s, s0, visible);
      add_values<true>(s, tile, s0, visible);
    } else {
      weigh<false>(s, s0, visible);
      add_values<false>(s, tile, s0, visible);
    }
  }

  // masked: some keys are not seen. Their weights are 0, and their values may be anything: 0 times NaN would be NaN.
  template <bool masked>
  __device__ void add_values(const float s[N / 8][4], const uint8_t* tile, int s0, const int visible[2]) {
    const int lane = thread_x() % 32;
    const uint8_t* values = tile + At::values + lane % 16 * At::vPitch + lane / 16 * 16;
    IVLITE_UNROLL
    for (int n = 0; n < N / 8; n += 2) {
      const uint32_t p[4] = {pack_half(s[n][0], s[n][1]), pack_half(s[n][2], s[n][3]), pack_half(s[n + 1][0], s[n + 1][1]),
                             pack_half(s[n + 1][2], s[n + 1][3])};
      IVLITE_UNROLL
      for (int j = 0; j < V / 8; j += 2) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, values + 8 * n * At::vPitch + 16 * j);
        if (masked) spoil(acc + j, b, s0 + 8 * n, visible);
        mma_f16(acc[j], p, b);
        mma_f16(acc[j + 1], p, b + 2);
      }
    }
  }

  // Takes values that are not finite out of b, of keys from `key` on; sums of queries that see one of them become NaN.
  __device__ void spoil(float sums[2][4], uint32_t b[4], int key, const int visible[2]) {
    uint32_t ones[4];
    IVLITE_UNROLL
    for (int i = 0; i < 4; i++) b[i] = finite(b[i], ones[i]);
    if (!any_lane(ones[0] | ones[1] | ones[2] | ones[3])) return;
    uint32_t seen[4];
    IVLITE_UNROLL
    for (int i = 0; i < 4; i++) {
      const int first = visible[i % 2] - key - i / 2 * 8 - 2 * (thread_x() % 4);
      seen[i] = first > 1 ? 0x3c003c00u : first == 1 ? 0x3c00u : 0;
    }
    IVLITE_UNROLL
    for (int k = 0; k < 2; k++) {
      float count[4] = {};
      mma_f16(count, seen, ones + 2 * k);
      IVLITE_UNROLL
      for (int e = 0; e < 4; e++)
        if (count[e] > 0) sums[k][e] = NAN;
    }
  }

  // Scores to softmax weights, relative to the largest score so far. masked: some keys are not seen.
  template <bool masked>
  __device__ void weigh(float s[N / 8][4], int s0, const int visible[2]) {
    const int lane = thread_x() % 32;
    float alpha[2];
    bool changed = false;
    IVLITE_UNROLL
    for (int half = 0; half < 2; half++) {
      const int seen = smaller(visible[half] - s0, N) - 2 * (lane % 4);  // columns 8 n + e below it
      float most = -INFINITY;
      IVLITE_UNROLL
      for (int n = 0; n < N / 8; n++) IVLITE_UNROLL
      for (int e = 0; e < 2; e++)
        if (!masked || 8 * n + e < seen) most = fmaxf(most, s[n][2 * half + e]);
      most = fmaxf(most, shuffle_xor(most, 1));
      most = fmaxf(most, shuffle_xor(most, 2));
      const float before = top[half];
      top[half] = fmaxf(before, most);
      alpha[half] = top[half] == before ? 1 : fast_exp2(before - top[half]);
      changed |= alpha[half] != 1;
      total[half] *= alpha[half];
      IVLITE_UNROLL
      for (int n = 0; n < N / 8; n++) IVLITE_UNROLL
      for (int e = 0; e < 2; e++) {
        const float p = fast_exp2(s[n][2 * half + e] - (top[half] - kWeightBits));
        s[n][2 * half + e] = !masked || 8 * n + e < seen ? p : 0;
        total[half] += s[n][2 * half + e];
      }
    }
    if (!any_lane(changed)) return;
    IVLITE_UNROLL
    for (int j = 0; j < V / 8; j++) IVLITE_UNROLL
    for (int e = 0; e < 4; e++) acc[j][e] *= alpha[e / 2];
  }

  __device__ void store(const AttentionWork& a, int q0, int h, int64_t first) {
    const int lane = thread_x() % 32;
    IVLITE_UNROLL
    for (int half = 0; half < 2; half++) {
      const int i = q0 + lane / 4 + 8 * half;
      total[half] += shuffle_xor(total[half], 1);
      total[half] += shuffle_xor(total[half], 2);
      if (i >= a.queries) continue;
      if (a.unfinished && lane % 4 == 0) a.m[i * a.heads + h] = top[half], a.l[i * a.heads + h] = total[half];
      float* row = a.out + (first + i) * a.ld_out + h * a.head_out;
      IVLITE_UNROLL
      for (int j = 0; j < V / 8; j++) IVLITE_UNROLL
      for (int e = 0; e < 2; e++) {
        const int c = 8 * j + 2 * (lane % 4) + e;
        const float x = acc[j][2 * half + e];
        if (c < a.dv) row[c] = a.unfinished ? x : total[half] == 0 ? 0 : x / total[half];
      }
    }
  }
};

template <int K, int V, int N>
IVLITE_KERNEL_OF(Tile<K, V, N>::kThreads, Tile<K, V, N>::kBlocks)
attention_kernel(AttentionWork a) {
  using At = Tile<K, V, N>;
  // The last queries see the most keys: they go first.
  const int q0 = (grid_x() - 1 - block_x()) * At::kQueries, h = block_y(), thread = thread_x(), lane = thread % 32;
  const int64_t segment = block_z(), first = segment * a.queries;
  const int all = (int)a.keys, seen = (int)a.first_visible + smaller(q0 + At::kQueries, (int)a.queries),
            keys = a.causal ? smaller(seen, all) : all;
  if (keys <= 0 && a.continues && a.unfinished) return;
  uint8_t* shared = shared_memory<uint8_t>();
  const Rows k(a.k, a.ld_k, a.d, h * a.head_k + segment * a.keys * a.ld_k), k2(a.k2, a.ld_k2, a.d2, segment * a.keys * a.ld_k2);
  const Rows v(a.v, a.ld_v, a.dv, h * a.head_v + segment * a.keys * a.ld_v);
  const bool whole = k.whole() && k2.whole() && v.whole();
  const auto copy = [&](int s0, int stage) {
    uint8_t* to = shared + stage * At::bytes;
    IVLITE_ROLLED  // copies in flight need no registers: those are the sums'
        for (int r = thread / 32; r < N; r += At::kThreads / 32) {
      const bool exists = s0 + r < all;
      copy_row(to + r * At::kPitch, k, s0 + r, exists, whole, lane);
      copy_row(to + r * At::kPitch + 2 * a.d, k2, s0 + r, exists, whole, lane);
      copy_row(to + At::values + r * At::vPitch, v, s0 + r, exists, whole, lane);
    }
    commit_copies();
  };
  for (int i = 16 * thread; i < 2 * At::bytes; i += 16 * At::kThreads) store16(shared + i, {});  // columns that do not exist
  sync_block();
  if (keys > 0) copy(0, 0);
  Warp<K, V, N> warp;
  const int mine = q0 + thread / 32 * 16;
  warp.load(a, mine, h, first);
  int visible[2];
  for (int half = 0; half < 2; half++) visible[half] = a.causal ? smaller((int)a.first_visible + mine + lane / 4 + 8 * half + 1, all) : all;
  for (int s0 = 0, stage = 0; s0 < keys; s0 += N, stage ^= 1) {
    wait_copies<0>();
    sync_block();
    if (s0 + N < keys) copy(s0 + N, stage ^ 1);
    warp.attend(shared + stage * At::bytes, s0, visible);
  }
  warp.store(a, mine, h, first);
}

template <int K, int V, int N>
Status run(const AttentionWork& a, Stream stream) {
  using At = Tile<K, V, N>;
  const Dim3 grid{(unsigned)((a.queries + At::kQueries - 1) / At::kQueries), (unsigned)a.heads, (unsigned)a.segments};
  return launch(attention_kernel<K, V, N>, grid, At::kThreads, (size_t)(2 * At::bytes), stream, a);
}

// Rows (tokens, heads, d) of float to (heads, tokens, d) of half.
IVLITE_KERNEL_OF(kPackThreads) pack_kernel(PackHeadsArgs a) {
  const int64_t t = block_x();
  for (int64_t i = thread_x(); i < a.heads * a.d; i += kPackThreads) {
    const int64_t h = i / a.d, j = i % a.d;
    ((uint16_t*)a.out)[(h * a.tokens + t) * a.d + j] = to_finite_half(a.x[t * a.ld_x + h * a.head_x + j]);
  }
}

}  // namespace

Status attention_f16(const AttentionWork& a, Stream stream) {
  if (a.queries == 0) return 0;
  const int64_t d = a.d + a.d2;
  if (d <= 64 && a.dv <= 64) return run<64, 64, 64>(a, stream);
  if (d <= 80 && a.dv <= 80) return run<80, 80, 64>(a, stream);
  if (d <= 128 && a.dv <= 128) return run<128, 128, 64>(a, stream);
  if (d <= 256 && a.dv <= 128) return run<256, 128, 48>(a, stream);
  return 1;
}

Status pack_heads(const PackHeadsArgs& a, Stream stream) {
  if (a.tokens == 0) return 0;
  return launch(pack_kernel, Dim3{(unsigned)a.tokens}, kPackThreads, 0, stream, a);
}

}  // namespace ivlite::cuda
