// Appending rows to the latent cache, with the queries beside them, and reading them. A block is a token, or some heads of a token's
// queries.
#include "cache.cuh"
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/quantize.cuh"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// The largest `bits` of the block, the same in all threads. `slots` are kWarps ints.
__device__ int block_largest(int bits, int* slots) {
  IVLITE_UNROLL
  for (int mask = 16; mask; mask /= 2) bits = larger(bits, shuffle_xor(bits, mask));
  if (thread_x() % 32 == 0) slots[thread_x() / 32] = bits;
  sync_block();
  for (int w = 0; w < kWarps; w++) bits = larger(bits, slots[w]);
  return bits;
}

// As formats/f16.h rounds: a NaN keeps its sign and its highest bits.
IVLITE_DEVICE uint16_t half_bits(float x) {
  const uint32_t bits = bits_of(x);
  return (bits & 0x7fffffff) > 0x7f800000 ? (uint16_t)((bits >> 16 & 0x8000) | 0x7e00 | (bits >> 13 & 0x3ff)) : to_half(x);
}

IVLITE_DEVICE int8_t code_of(float x, float inverse) { return inverse > 0 ? (int8_t)rintf(x * inverse) : 0; }

// What an append needs of shared memory: the row, its rotated key, and room for reductions; for q4 also codes and tables.
struct AppendShared {
  float *row, *key;
  int* slots;
  float* middle;  // of q4: between levels i and i + 1 of table t at 16 t + i
  int8_t* level;
  uint8_t *code, *table;

  __device__ explicit AppendShared(const DeviceRows& c) {
    row = shared_memory<float>(), key = row + c.rank, slots = (int*)(key + c.rope_dim), middle = (float*)(slots + kWarps);
    level = (int8_t*)(middle + 256), code = (uint8_t*)level + 256, table = code + c.rank;
  }
  static size_t bytes(const DeviceRows& c, CacheKind kind) {
    const size_t floats = 4 * (size_t)(c.rank + c.rope_dim + kWarps);
    return kind == CacheKind::q4 ? floats + 1024 + 256 + (size_t)(c.rank + c.rank / kLevelGroup + 2) : floats;
  }
};

// The row and key as they are stored in float32: normalized, rotated.
__device__ void load_row(const AppendArgs& a, const DeviceRows& c, const AppendShared& to, int64_t t) {
  float square = 0;
  for (int j = thread_x(); j < c.rank; j += kThreads) {
    const float x = a.latent[t * a.ld_latent + j];
    to.row[j] = x;
    square = fmaf(x, x, square);
  }
  if (a.norm) {
    square = warp_sum(square);
    float* sums = (float*)to.slots;
    if (thread_x() % 32 == 0) sums[thread_x() / 32] = square;
    sync_block();
    float sum = 0;
    for (int w = 0; w < kWarps; w++) sum += sums[w];
    const float scale = 1 / sqrtf(sum / (float)c.rank + a.eps);
    for (int j = thread_x(); j < c.rank; j += kThreads) to.row[j] = to.row[j] * scale * a.norm[j];
    sync_block();
  }
  const int half = c.rope_dim / 2;
  const float* key = a.rope + t * a.ld_rope;
  for (int j = thread_x(); a.cos && j < half; j += kThreads) {
    const float first = key[a.interleaved ? 2 * j : j], second = key[a.interleaved ? 2 * j + 1 : j + half];
    const float cos = a.cos[t * half + j], sin = a.sin[t * half + j];
    to.key[j] = first * cos - second * sin;
    to.key[j + half] = second * cos + first * sin;
  }
  for (int j = thread_x(); !a.cos && j < c.rope_dim; j += kThreads) to.key[j] = key[j];
  sync_block();
}

__device__ void write_halves(uint8_t* to, const float* from, int n) {
  for (int j = thread_x(); j < n; j += kThreads) ((uint16_t*)to)[j] = half_bits(from[j]);
}

__device__ void write_q8(const DeviceRows& c, const AppendShared& from, int64_t s) {
  int most = 0;
  for (int j = thread_x(); j < c.rank; j += kThreads) most = larger(most, magnitude(from.row[j]));
  const CodeScale scale = block_scale(float_of((uint32_t)block_largest(most, from.slots)), 127);
  int8_t* codes = (int8_t*)c.latent + s * c.latent_bytes;
  for (int j = thread_x(); j < c.rank; j += kThreads) codes[j] = code_of(from.row[j], scale.inverse);
  if (thread_x() == 0) c.scale[s] = scale.scale;
}

// A group of 16 lanes rounds its 16 columns y, of which `valid` exist, to levels of one of two tables: the table and the lane's code.
struct Rounded {
  int table, code;
};
__device__ Rounded round_group(const AppendShared& use, float y, bool valid) {
  int top = magnitude(y);
  IVLITE_UNROLL
  for (int mask = 8; mask; mask /= 2) top = larger(top, shuffle_xor(top, mask));
  const int last = (int)ceilf(float_of((uint32_t)top) * (16.0f / 127)) - 1, table = smaller(larger(last, 0), 15);
  int code[2];
  float error[2];
  IVLITE_UNROLL
  for (int finer = 0; finer < 2; finer++) {
    const int of = larger(table - finer, 0);
    code[finer] = 0;
    for (int step = 0; step < 15; step++) code[finer] += y >= use.middle[16 * of + step];
    const float off = (float)use.level[16 * of + code[finer]] - y;
    error[finer] = valid ? off * off : 0;
    IVLITE_UNROLL
    for (int mask = 8; mask; mask /= 2) error[finer] += shuffle_xor(error[finer], mask);
  }
  const int finer = table > 0 && error[1] < error[0];
  return {table - finer, code[finer]};
}

// Rotates the row's parts, each by a warp, in place; the largest magnitude of the block.
__device__ int rotate_row(const DeviceRows& c, const AppendShared& use) {
  const int lane = thread_x() % 32;
  int most = 0;
  for (int at = thread_x() / 32 * kPart; at < c.rank; at += kWarps * kPart) {
    const int n = smaller(c.rank - at, kPart);
    float v[4];
    for (int i = 0; i < 4; i++) v[i] = lane + 32 * i < n ? use.row[at + lane + 32 * i] : 0;
    rotate_part(v, n, lane);
    for (int i = 0; i < 4; i++)
      if (lane + 32 * i < n) use.row[at + lane + 32 * i] = v[i], most = larger(most, magnitude(v[i]));
  }
  return block_largest(most, use.slots);
}

__device__ void write_key_q4(const DeviceRows& c, const AppendShared& from, int64_t s) {
  const int lane = thread_x() % 32;
  for (int at = thread_x() / 32 * kGroup; at < c.rope_dim; at += kWarps * kGroup) {
    const bool valid = at + lane < c.rope_dim;
    const float x = valid ? from.key[at + lane] : 0;
    int most = magnitude(x);
    IVLITE_UNROLL
    for (int mask = 16; mask; mask /= 2) most = larger(most, shuffle_xor(most, mask));
    const CodeScale scale = block_scale(float_of((uint32_t)most), 127);
    if (valid) ((int8_t*)c.rope)[s * c.rope_bytes + at + lane] = code_of(x, scale.inverse);
    if (lane == 0) c.scale[s * c.scales + 1 + at / kGroup] = scale.scale;
  }
}

__device__ void write_q4(const DeviceRows& c, const AppendShared& use, int64_t s) {
  const int thread = thread_x(), lane = thread % 32;
  fill_levels(use.level, thread, kThreads);
  for (int i = thread; i < 256; i += kThreads)
    if (i % 16 < 15) use.middle[i] = 0.5f * (float)(q4_level(i / 16, i % 16) + q4_level(i / 16, i % 16 + 1));
  const CodeScale scale = block_scale(float_of((uint32_t)rotate_row(c, use)), 127);
  for (int at = thread / 32 * kPart; at < c.rank; at += kWarps * kPart) {
    for (int i = 0; i < 4; i++) {
      const int j = at + lane + 32 * i;
      const bool valid = j < c.rank;
      const Rounded rounded = round_group(use, valid && scale.inverse > 0 ? use.row[j] * scale.inverse : 0, valid);
      const int next = shuffle(rounded.table, 16);  // of the group beside this one
      if (valid) use.code[j] = (uint8_t)rounded.code;
      if (lane == 0 && valid) use.table[at / 32 + i] = (uint8_t)(rounded.table | next << 4);
    }
  }
  sync_block();
  uint8_t* row = c.latent + s * c.latent_bytes;
  const int bytes = (c.rank + 1) / 2;
  for (int b = thread; b < bytes; b += kThreads) {
    const int run = b / (kRun / 2) * kRun, i = b % (kRun / 2), n = smaller(c.rank - run, kRun), half = (n + 1) / 2;
    row[b] = (uint8_t)(use.code[run + i] | (half + i < n ? use.code[run + half + i] << 4 : 0));
  }
  for (int b = bytes + thread; b < c.latent_bytes; b += kThreads) row[b] = use.table[b - bytes];
  if (thread == 0) c.scale[s * c.scales] = scale.scale;
  write_key_q4(c, use, s);
}

// The queries of a token, padding included: a warp is a head.
__device__ void prepare_queries(const AppendArgs& a, int rope_dim) {
  const QueryArgs& q = a.queries;
  const int64_t t = block_x(), h = (int64_t)(block_y() - 1) * kWarps + thread_x() / 32;
  if (h >= q.heads) return;
  const int lane = thread_x() % 32, half = rope_dim / 2;
  const float* from = q.q + t * q.ldq + h * q.ldh;
  const float* turned = from + q.nope;
  for (int j = lane; t < a.tokens && j < half; j += 32) {
    const float first = turned[a.interleaved ? 2 * j : j], second = turned[a.interleaved ? 2 * j + 1 : j + half];
    const float cos = a.cos[t * half + j], sin = a.sin[t * half + j];
    float* to = q.rope + (t * q.heads + h) * rope_dim;
    to[j] = first * cos - second * sin;
    to[j + half] = second * cos + first * sin;
  }
  for (int64_t i = lane; q.nope_codes.codes && i < 8 * int8_groups(q.nope); i += 32)
    round_word(q.nope_codes, h, t, i, t < a.tokens ? q.nope : 0, [&](int64_t column) { return from[column]; });
}

template <CacheKind kind>
IVLITE_KERNEL_OF(kThreads)
append_kernel(AppendArgs a, DeviceRows rows) {
  if (block_y() > 0) return prepare_queries(a, (int)rows.rope_dim);
  const DeviceRows c = found(rows);
  const int64_t t = block_x(), s = *a.length + t;
  if (t >= a.tokens || s >= c.place->capacity) return;
  const AppendShared use(c);
  load_row(a, c, use, t);
  for (int j = thread_x(); a.given_latent && j < c.rank; j += kThreads) a.given_latent[t * c.rank + j] = use.row[j];
  for (int j = thread_x(); a.given_rope && j < c.rope_dim; j += kThreads) a.given_rope[t * c.rope_dim + j] = use.key[j];
  if constexpr (kind == CacheKind::f32) {
    for (int j = thread_x(); j < c.rank; j += kThreads) ((float*)c.latent)[s * c.rank + j] = use.row[j];
    for (int j = thread_x(); j < c.rope_dim; j += kThreads) ((float*)c.rope)[s * c.rope_dim + j] = use.key[j];
  }
  if constexpr (kind == CacheKind::bf16) write_halves(c.latent + s * c.latent_bytes, use.row, c.rank);
  if constexpr (kind == CacheKind::q8) write_q8(c, use, s);
  if constexpr (kind == CacheKind::bf16 || kind == CacheKind::q8) write_halves(c.rope + s * c.rope_bytes, use.key, c.rope_dim);
  if constexpr (kind == CacheKind::q4) {
    sync_block();  // what was given is read before the row is rotated
    write_q4(c, use, s);
  }
}

IVLITE_DEVICE void put(float* to, float x) { *to = x; }
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
IVLITE_DEVICE void put(Bf16* to, float x) { to->bits = to_bf16(x); }
IVLITE_DEVICE void put(Half* to, float x) { to->bits = to_finite_half(x); }

template <CacheKind kind, class Out>
IVLITE_KERNEL_OF(kThreads)
read_kernel(ReadArgs a, DeviceRows rows) {
  const DeviceRows c = found(rows);
  const int64_t r = block_x(), s = a.first + r, given = s - a.stored;
  const bool from_given = a.given_latent && given >= 0;
  Out* latent = a.latent ? (Out*)a.latent + r * a.ld_latent : nullptr;
  Out* rope = a.rope ? (Out*)a.rope + r * a.ld_rope : nullptr;
  for (int j = thread_x(); rope && j < c.rope_dim; j += kThreads)
    put(rope + j, from_given ? a.given_rope[given * c.rope_dim + j] : rope_at<kind>(c, s, j));
  if (!latent) return;
  if (from_given || kind != CacheKind::q4) {
    for (int j = thread_x(); j < c.rank; j += kThreads)
      put(latent + j, from_given                          ? a.given_latent[given * c.rank + j]
                      : latent_at < kind == CacheKind::q4 ? CacheKind::f32
                                                          : kind > (c, s, j, nullptr));
    return;
  }
  int8_t* level = shared_memory<int8_t>();
  fill_levels(level, thread_x(), kThreads);
  sync_block();
  const int lane = thread_x() % 32;
  for (int at = thread_x() / 32 * kPart; at < c.rank; at += kWarps * kPart) {
    const int n = smaller(c.rank - at, kPart);
    float v[4];
    for (int i = 0; i < 4; i++) v[i] = lane + 32 * i < n ? latent_at<CacheKind::q4>(c, s, at + lane + 32 * i, level) : 0;
    rotate_part(v, n, lane);
    for (int i = 0; i < 4; i++)
      if (lane + 32 * i < n) put(latent + at + lane + 32 * i, v[i]);
  }
}

template <CacheKind kind>
Status read_as(const ReadArgs& a, const DeviceRows& c, Stream stream) {
  const Dim3 grid{(unsigned)a.rows};
  switch (a.as) {
    case Operand::f32: return launch(read_kernel<kind, float>, grid, kThreads, 256, stream, a, c);
    case Operand::bf16: return launch(read_kernel<kind, Bf16>, grid, kThreads, 256, stream, a, c);
    default: return launch(read_kernel<kind, Half>, grid, kThreads, 256, stream, a, c);
  }
}

}  // namespace

Status append_rows(const AppendArgs& a, Stream stream) {
  if (a.tokens == 0) return 0;
  const DeviceRows c = device_rows(a.cache);
  const int64_t tokens = a.queries.nope_codes.codes ? int8_tokens(a.tokens) : a.tokens, heads = (a.queries.heads + kWarps - 1) / kWarps;
  const auto run = [&](auto kernel) {
    return launch(kernel, Dim3{(unsigned)tokens, (unsigned)(1 + heads)}, kThreads, AppendShared::bytes(c, a.cache.kind), stream, a, c);
  };
  switch (a.cache.kind) {
    case CacheKind::f32: return run(append_kernel<CacheKind::f32>);
    case CacheKind::bf16: return run(append_kernel<CacheKind::bf16>);
    case CacheKind::q8: return run(append_kernel<CacheKind::q8>);
    default: return run(append_kernel<CacheKind::q4>);
  }
}

Status read_rows(const ReadArgs& a, Stream stream) {
  if (a.rows == 0) return 0;
  const DeviceRows c = device_rows(a.cache);
  switch (a.cache.kind) {
    case CacheKind::f32: return read_as<CacheKind::f32>(a, c, stream);
    case CacheKind::bf16: return read_as<CacheKind::bf16>(a, c, stream);
    case CacheKind::q8: return read_as<CacheKind::q8>(a, c, stream);
    default: return read_as<CacheKind::q4>(a, c, stream);
  }
}

}  // namespace ivlite::cuda
