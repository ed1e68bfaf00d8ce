// Every function the runtime may call on raw memory.
//
// A kernel never allocates, never throws, never starts a thread and never sees a Tensor. It works on the
// range it is given ([p0, p1) panels, [t0, t1) tokens, ...); ops/ checks shapes and splits ranges among threads.
// init_ref fills every entry with plain C++; each instruction set then overrides what it does better.
//
// Packed weights. A matrix w (rows, cols) is cut into panels of kPanel = 16 rows; the last panel is padded with
// zero rows, and columns are padded with zeros to a multiple of kGroup = 32. One panel is one sequential stream:
//   f32, f16, bf16   [cols][16] elements: lane r of column k is w[16 p + r, k]
// Codes lie in quads: 4 columns x 16 rows, 64 bytes once unpacked, which is one operand of a dot-product instruction.
//   q8_0             per group of 32 columns: 8 quads, then 16 f16 scales (544 bytes).
//                    Byte 4 r + i of quad j is the code of w[16 p + r, 32 g + 4 j + i].
//   q4_0             per group: 4 vectors of 64 bytes, then 16 f16 scales (288 bytes). Byte 4 r + i of vector j holds
//                    quad 2 j in its low nibble and quad 2 j + 1 in its high nibble: columns 32 g + 8 j + i and
//                    32 g + 8 j + 4 + i, as unsigned codes 0..15 for the values -8..7.
// In K formats every 256 columns begin with a header; the last may be followed by fewer than 8 groups.
//   q4_k             header: 16 f16 d, 16 f16 dmin. Per group: the vectors of q4_0, 16 scales, 16 mins, one byte each.
//   q5_k             the same with a fifth vector: bit j of its byte 4 r + i is the fifth bit of column 32 g + 4 j + i.
//   q6_k             header: 16 f16 d. Per group: the vectors of q4_0; 2 vectors, of which bits 2 (j % 4) of byte 4 r + i
//                    of vector j / 4 are the fifth and sixth bit of column 32 g + 4 j + i, codes 0..63 for -32..31;
//                    then 16 signed bytes of scales of columns 0..15 and 16 of columns 16..31.
// SIMD lanes are output rows, so no kernel ever reduces across lanes.
#pragma once
#include <stdint.h>

#include "formats/formats.h"

namespace ivlite {

constexpr int kPanel = 16;    // weight rows in one packed panel
constexpr int kGroup = 32;    // columns that share one scale, in weights and in quantised activations
constexpr int kBlockK = 128;  // columns that share one scale in the GEMM path: a k-block

constexpr int kSuper = 8;  // groups after one header in a panel of a K format

// How a panel of a quantised format lies in memory.
struct PanelLayout {
  int vectors;  // of 64 bytes of codes, per group
  int scales;   // bytes after them
  int header;   // bytes before every kSuper groups
  constexpr int64_t group() const { return 64 * vectors + scales; }
  constexpr int64_t super() const { return header + kSuper * group(); }
};
constexpr PanelLayout panel_layout(Format f) {
  return f == Format::q8_0   ? PanelLayout{8, 32, 0}
         : f == Format::q4_0 ? PanelLayout{4, 32, 0}
         : f == Format::q4_k ? PanelLayout{4, 32, 64}
         : f == Format::q5_k ? PanelLayout{5, 32, 64}
                             : PanelLayout{6, 32, 32};
}
// Where the codes of group g begin in a panel, and the bytes of a panel of that many groups.
constexpr int64_t group_at(const PanelLayout& l, int64_t g) { return g * l.group() + (g / kSuper + 1) * l.header; }
constexpr int64_t layout_bytes(const PanelLayout& l, int64_t groups) {
  return groups * l.group() + (groups + kSuper - 1) / kSuper * l.header;
}

// Activations of `tokens` rows quantised to int8, in groups of kGroup columns.
//   q      (tokens, cols padded to kGroup)   codes -127..127, round to nearest even of x / scale
//   scale  (tokens, groups)                  absmax / 127, 0 for an all-zero group
//   sum    (tokens, groups)                  sum of the 32 codes: corrects for the unsigned offset of weight codes
//   halves (tokens, groups, 2)               sums of 16 codes each, for formats with a scale per 16 columns
//   shift  (tokens, groups)                  scale x sum: multiplied by the mins of a weight format
struct QuantRows {
  int8_t* q;
  float* scale;
  int32_t *sum, *halves;
  float* shift;
  int64_t cols;  // padded
};

// One linear layer, y[t, r] = bias[r] + sum_k w[r, k] x[t, k]   (+= when accumulate), for panels [p0, p1), all tokens.
struct LinearArgs {
  float* y;  // (tokens, ldy)
  int64_t ldy;
  const float* x;  // (tokens, ldx), used by float formats; cols real columns
  int64_t ldx;
  QuantRows xq;        // used by quantised formats
  const void* panels;  // packed as above; panel stride is panel_bytes(format, cols)
  int64_t rows;        // real rows: the kernel stores no more
  int64_t cols;        // real columns
  const float* bias;   // (rows,) or null
  bool accumulate;
  int64_t tokens;
  const uint16_t* gemm_x;  // linear_gemm: activations as quantize_gemm wrote them; of xq only cols is set
  void* scratch;           // linear_gemm: kGemmScratch bytes, 64-byte aligned, owned by the calling thread
};
using linear_fn = void (*)(const LinearArgs& a, int64_t p0, int64_t p1);

// A part of the activations (tokens, cols) to quantize: rows [t0, t1), columns [c0, c1). c0 is a multiple of kBlockK, c1 is a
// multiple or cols. x, rows ldx apart, begins at column c0 of row 0.
struct Part {
  const float* x;
  int64_t ldx, t0, t1, c0, c1;
};

// Quantizes a part to the input of linear_gemm of the same instruction set and format, in a layout of its own: of each token at
// most 2 bytes per column and kBlockScales bytes per k-block, tokens padded to 16 and columns to kBlockK. t0 is a multiple of
// 16, t1 is a multiple or tokens.
using quantize_gemm_fn = void (*)(uint16_t* out, int64_t tokens, int64_t cols, const Part& part);
// The same of tokens [t0, t1) that are int8 codes already, (t1 - t0, cols), with a scale each: nothing is rounded.
using codes_gemm_fn = void (*)(uint16_t* out, int64_t tokens, int64_t cols, const int8_t* codes, const float* scale, int64_t t0,
                               int64_t t1);

constexpr int64_t kGemmScratch = 704 << 10, kBlockScales = 32;

// Quantizes a part to int8 per group; columns from c1 to the end of its group become zeros.
using quantize_rows_fn = void (*)(const QuantRows& out, const Part& part);

// y[t] = x[t] / sqrt(mean(x[t]^2) + eps) * w                         rows of n
using rms_norm_fn = void (*)(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w, int64_t n, float eps, int64_t t0,
                             int64_t t1);
// y[t] = (x[t] - mean) / sqrt(var + eps) * w + b
using layer_norm_fn = void (*)(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w, const float* b, int64_t n, float eps,
                               int64_t t0, int64_t t1);

// Rotates each head of rows [t0, t1); cos and sin are (tokens, d / 2). With pairs (a_j, b_j):
//   y[j] = a_j cos_j - b_j sin_j,  y[j + d/2] = b_j cos_j + a_j sin_j
// interleaved: a_j = x[2j], b_j = x[2j + 1]; otherwise a_j = x[j], b_j = x[j + d/2]. y is always in half order.
struct RopeArgs {
  float* y;        // (tokens, heads, d) packed
  const float* x;  // token stride ldx, head stride ldh
  int64_t ldx, ldh;
  const float *cos, *sin;
  int64_t heads, d;
  bool interleaved;
};
using rope_fn = void (*)(const RopeArgs& a, int64_t t0, int64_t t1);

// y[t, i] = silu(gate[t, i]) * up[t, i] for i < n; rows of gate and up are ldx apart
using silu_mul_fn = void (*)(float* y, int64_t ldy, const float* gate, const float* up, int64_t ldx, int64_t n, int64_t t0, int64_t t1);
// y[i] = gelu(x[i]) for i in [i0, i1): tanh form or exact erf form; y may be x
using gelu_fn = void (*)(float* y, const float* x, int64_t i0, int64_t i1);

// Softmax attention of one head for queries [q0, q1), keys and values streamed once.
//   out[i] = sum_s softmax_s(scale (q[i] . k[s] + q2[i] . k2[s])) v[s]
// Query i sees keys s < min(keys, first_visible + i + 1) when causal, none if that is negative, and all keys otherwise. q2/k2 may be
// null (d2 = 0): they carry the rope part, whose keys are shared by all heads.
//
// Keys may come in several calls, each with the next of them. All but the first continue, all but the last are unfinished: between
// them m, l and out hold the state of each query, in a form of the kernel's own.
struct AttentionArgs {
  float* out;
  int64_t ld_out;  // row strides in elements
  const float* q;
  int64_t ld_q;
  const float* k;
  int64_t ld_k;
  const float* q2;
  int64_t ld_q2;
  const float* k2;
  int64_t ld_k2;
  const float* v;
  int64_t ld_v;
  int64_t d, d2, dv, keys;
  int64_t first_visible;
  bool causal, continues, unfinished;
  float scale;
  float *m, *l;    // (queries,) floats between calls; null for keys in one call
  float* scratch;  // attention_scratch(args) floats, owned by the calling thread
  // Of packed attention alone:
  const void *packed_q, *packed_k;  // from query 0 and key 0 on
  const float* mean;                // null, or what packing may subtract from each row of k: it shifts all scores of a query alike
};
using attention_fn = void (*)(const AttentionArgs& a, int64_t q0, int64_t q1);

// Faster attention, in bf16 or int8, over packed operands: keys and values are packed once for all queries that see them, queries
// once for all keys. Rows are packed in any parts that begin at multiples of kPackedRows; n rows take a number of bytes that is a
// multiple of 64, and grows in proportion to the kPackedRows that they begin.
constexpr int64_t kPackedRows = 128;
struct PackedAttention {
  int64_t (*query_bytes)(const AttentionArgs& a, int64_t n);
  int64_t (*key_bytes)(const AttentionArgs& a, int64_t n);
  void (*pack_queries)(void* to, const AttentionArgs& a, int64_t q0, int64_t q1);  // from q and q2
  void (*pack_keys)(void* to, const AttentionArgs& a, int64_t s0, int64_t s1);     // from k, k2 and v
  attention_fn attention;                                                          // q0 is a multiple of kPackedRows
};

// The latent key/value cache of one layer. Rows are tokens.
//   f32   latent (capacity, rank) float, rope (capacity, rope) float
//   bf16  16 bits per value, as f16: eight times finer than bf16, and wide enough for latents and keys
//   q8    latent codes int8 with one float scale per token (absmax / 127), rope in f16
//   q4    latent rotated and in 4 bits (kernels/q4.h), rope in int8; scales per token: of the latent, then one per 32 rope columns
struct LatentRows {
  void* latent;
  float* scale;  // q8 and q4
  void* rope;
  int64_t rank, rope_dim;
};
enum class CacheKind { f32, bf16, q8, q4 };
constexpr int kCacheKinds = 4, kQ4Group = 16;

// Bytes of a token in each array of LatentRows.
struct RowBytes {
  int64_t latent, scale, rope;
};
constexpr RowBytes row_bytes(CacheKind kind, int64_t rank, int64_t rope_dim) {
  const int64_t wide = kind == CacheKind::f32 ? 4 : 2, groups = (rank + kQ4Group - 1) / kQ4Group;
  return kind == CacheKind::q8   ? RowBytes{rank, 4, 2 * rope_dim}
         : kind == CacheKind::q4 ? RowBytes{(rank + 1) / 2 + (groups + 1) / 2, 4 * (1 + (rope_dim + kGroup - 1) / kGroup), rope_dim}
                                 : RowBytes{wide * rank, 0, wide * rope_dim};
}

// Absorbed attention over cached tokens [s0, s1): every head of every query shares the same latent row.
//   score[i, h, s] = scale (q_latent[i, h] . c[s] + q_rope[i, h] . k_rope[s])
// Leaves, per (query, head), the running maximum m (of scores; of rows with scales also of scores plus the logarithms of these), the
// sum l of exp(score - m), and acc = sum exp(score - m) c[s]: parts of a split over tokens are merged by ops/. Query i sees
// s <= position + i.
struct LatentArgs {
  float* acc;             // (queries, heads, rank), overwritten
  float* m;               // (queries, heads), -inf where nothing is visible
  float* l;               // (queries, heads)
  const float* q_latent;  // (queries, heads, rank) packed
  const float* q_rope;    // (queries, heads, rope_dim) packed
  LatentRows cache;
  int64_t queries, heads, position;
  float scale;
  float* scratch;  // latent_scratch(args) floats, owned by the calling thread
};
using latent_attention_fn = void (*)(const LatentArgs& a, int64_t s0, int64_t s1);

// Writes rows [t0, t1) of latent (tokens, ldc) and rope (tokens, ldr) to cache rows first + t.
using cache_write_fn = void (*)(const LatentRows& cache, int64_t first, const float* latent, int64_t ldc, const float* rope, int64_t ldr,
                                int64_t t0, int64_t t1);
// Reads cache rows [s0, s1) as float: latent (s1 - s0, rank) and rope (s1 - s0, rope_dim), either may be null.
using cache_read_fn = void (*)(float* latent, float* rope, const LatentRows& cache, int64_t s0, int64_t s1);

// Patches of one pair of frames, in the order (t, gh/merge, gw/merge, merge, merge), each (3, temporal, p, p):
//   out[...] = (frame / 255 - mean[c]) / std[c].  frames (temporal, h, w, 3) u8, contiguous; block rows [b0, b1) of gh/merge.
struct PatchArgs {
  float* out;
  const uint8_t* frames;
  int64_t temporal, h, w, patch, merge;
  float mean[3], std[3];
};
using patchify_fn = void (*)(const PatchArgs& a, int64_t b0, int64_t b1);

// Resampling of 8-bit RGB pictures along one axis: output i is the sum of `taps` inputs from first[i] on, times weights with
// kResizeBits fractional bits, rounded and clipped to a byte. The sums are exact in 32 bits. Taps are a multiple of 4, padded
// with zero weights. For products of 16 bits, each weight is also 2048 high + low, 0 <= low < 2048:
//   halves   per two outputs (the second may be missing) and 4 taps: the high halves of the first two taps, their low halves,
//            and both of the other two taps. Each is 16 words: 4 times those of the first output, 4 times those of the second.
//   pairs    per output and 2 taps: the high halves, the first in the low word; the low halves
constexpr int kResizeBits = 22, kResizeLow = 11;
struct ResizeAxis {
  int64_t outputs, taps;
  const int64_t* first;    // (outputs)
  const int32_t* weights;  // (outputs, taps)
  const int16_t* halves;   // (outputs / 2 rounded up, taps / 4, 4, 16)
  const int32_t* pairs;    // (outputs, taps / 2, 2)
};
constexpr int kResizeRows = 4, kResizeMargin = 16;
// kResizeRows rows of pixels to `outputs` pixels each; an input row is readable for 3 (first + taps) + 4 bytes of every output.
using resize_rows_fn = void (*)(uint8_t* const* out, const uint8_t* const* rows, const ResizeAxis& a);
// One output row of `bytes` from its `taps` rows.
using resize_columns_fn = void (*)(uint8_t* out, const uint8_t* const* rows, const ResizeAxis& a, int64_t output, int64_t bytes);

struct KernelTable {
  linear_fn linear[kFormatCount];  // by Format; every readable format has one
  quantize_rows_fn quantize_rows;
  // The GEMM path: from gemm_from tokens on, quantised weights are unpacked once for all of them. Null without such a path.
  linear_fn linear_gemm[kFormatCount];
  quantize_gemm_fn quantize_gemm[kFormatCount];
  codes_gemm_fn codes_gemm[kFormatCount];  // null where their formats differ
  int64_t gemm_from, gemm_panels;          // and how many panels it takes together
  bool gemm_is_finer[kFormatCount];        // than int8 with a scale per kGroup columns
  rms_norm_fn rms_norm;
  layer_norm_fn layer_norm;
  rope_fn rope;
  silu_mul_fn silu_mul;
  gelu_fn gelu_tanh, gelu_erf;
  attention_fn attention;
  PackedAttention packed_attention;                   // null without such a path
  latent_attention_fn latent_attention[kCacheKinds];  // by CacheKind
  cache_write_fn cache_write[kCacheKinds];
  cache_read_fn cache_read[kCacheKinds];
  patchify_fn patchify;
  resize_rows_fn resize_rows;
  resize_columns_fn resize_columns;
  // Probes of what this machine can do at best with this instruction set: the denominators of `ivlite bench`.
  uint64_t (*int8_peak)(int64_t iterations);                    // multiply-accumulates done, operands in registers
  uint64_t (*matrix_peak)(int64_t iterations);                  // of the matrix unit; null without one
  float (*read_streams[2])(const void* memory, int64_t bytes);  // touch every byte once: as one stream, as several side by side
};

// Floats of scratch that one call of an attention kernel may use: blocks of up to 128 queries and 512 keys in float, of 512
// queries and 128 keys in bf16 or integers.
inline int64_t attention_scratch(const AttentionArgs& a) {
  const int64_t exact = 128 * (a.d + a.d2 + a.dv + 512) + 4096, reduced = 640 * (a.d + a.d2 + 64) + 576 * (a.dv + 64) + 65536;
  return exact > reduced ? exact : reduced;
}
// Of one of absorbed attention: what its blocks take, and behind that rotated queries.
inline int64_t latent_block_scratch(const LatentArgs& a) {
  const int64_t lanes = a.heads + 32;
  return (lanes + 256) * (a.cache.rank + a.cache.rope_dim + 64) + 64 * lanes + 32768;
}
inline int64_t latent_scratch(const LatentArgs& a) { return latent_block_scratch(a) + a.queries * a.heads * a.cache.rank; }

void init_ref(KernelTable& t);
void init_avx2(KernelTable& t);
void init_avxvnni(KernelTable& t);
void init_avx512vnni(KernelTable& t);
void init_amx(KernelTable& t);
void init_neon(KernelTable& t);
void init_i8mm(KernelTable& t);

}  // namespace ivlite
