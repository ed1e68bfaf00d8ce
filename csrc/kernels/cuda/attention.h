// The launchers of the latent cache and of attention: cache.cu, latent.cu and its neighbours, attention.cu, attention_f32.cu.
// Arrays are float32 in device memory unless stated otherwise; T is tokens, H heads.
#pragma once
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/linear.h"
#include "kernels/table.h"

namespace ivlite::cuda {

// Where the arrays of a layer lie, aligned to 16 bytes, and how many rows they have. Kernels find it in device memory, so that a recorded
// launch is right for every cache of its shapes whose places are copied there.
struct LayerPlace {
  void* latent;
  float* scale;
  void* rope;
  int64_t capacity;
};
struct CacheLayer {
  const LayerPlace* place;
  int64_t rank, rope_dim;
  CacheKind kind;
};

// The queries of a layer as one product leaves them, made ready for attention.
struct QueryArgs {
  const float* q;  // (T, H, nope + rope_dim)
  int64_t ldq, ldh;
  int64_t heads, nope;
  float* rope;          // (T, H, rope_dim): the rotary part, rotated as the keys are
  Int8Rows nope_codes;  // the rest as quantize would round it; null codes: it is left as it is
};

// Writes rows *length .. *length + tokens of a layer, in the bytes of the CPU's cache; rows at or beyond the capacity are left out.
struct AppendArgs {
  CacheLayer cache;
  const int32_t* length;  // in device memory: tokens stored in every layer
  const float* latent;    // (T, ld_latent)
  int64_t ld_latent;
  const float* norm;  // (rank): the latent's RMS norm is taken first; null: it is stored as it is
  float eps;
  const float* rope;  // (T, ld_rope)
  int64_t ld_rope;
  const float *cos, *sin;  // (T, rope_dim / 2): the key is rotated first; null: it is
  bool interleaved;
  float *given_latent, *given_rope;  // null, or (T, rank) and (T, rope_dim): the rows as they were before rounding
  int64_t tokens;
  QueryArgs queries;  // without heads: none. Else there are cos and sin; to be rounded, up to kFewRows tokens
};
Status append_rows(const AppendArgs& a, Stream stream);

enum class Operand { f32, bf16, f16 };

// Rows [first, first + rows) of a layer as numbers; rows from `stored` on are those that were given, if given_latent is not null.
struct ReadArgs {
  CacheLayer cache;
  int64_t first, rows, stored;
  const float *given_latent, *given_rope;
  Operand as;
  void* latent;  // (rows, ld_latent), or null
  int64_t ld_latent;
  void* rope;  // (rows, ld_rope), or null
  int64_t ld_rope;
};
Status read_rows(const ReadArgs& a, Stream stream);

// out[t, h] = sum_s softmax_s(scale (q_latent[t, h] . c[s] + q_rope[t, h] . k[s])) c[s] over the tokens up to that of query t.
//
// The T queries belong to the newest T of *length + pending tokens. given_latent, given_rope: of the `pending` tokens that were appended
// and not yet advanced over, as they were given: a query sees its own so, and all others as they are stored; null: its own too.
// `splits` blocks share the tokens of a query. Its result depends on them, and not on the queries beside it.
struct AbsorbedArgs {
  float* out;                      // (T, H, rank)
  Int8Rows codes;                  // instead of out, up to kFewRows tokens: as quantize would round it; null codes: not
  const float *q_latent, *q_rope;  // (T, H, rank), (T, H, rope_dim)
  CacheLayer cache;
  const float *given_latent, *given_rope;
  const int32_t* length;
  int64_t pending, tokens, heads, splits;
  float scale;
  float* workspace;  // at least absorbed_query_floats; of up to T times as many, all are used; aligned to 16 bytes
  int64_t workspace_floats;
};
Status absorbed_attention(const AbsorbedArgs& a, Stream stream);
int64_t absorbed_query_floats(int64_t heads, int64_t rank, int64_t splits);

// out[i, h] = sum_s softmax_s(scale (q[i, h] . k[s, h] + q2[i, h] . k2[s])) v[s, h]
// in `segments` runs of `queries` rows and `keys` keys. Query i sees keys s < min(keys, first_visible + i + 1) when causal, all otherwise.
//
// Keys may come in several calls, each with the next of them: all but the first continue, all but the last are unfinished, and between them
// m, l (queries, H) and out hold the state of each query. Then there is one segment.
struct AttentionWork {
  float* out;
  int64_t ld_out, head_out;  // elements from row to row and from head to head, here and below
  const float* q;
  int64_t ld_q, head_q;
  const float* q2;  // null: without a part that is shared by all heads
  int64_t ld_q2, head_q2;
  const void* k;  // half or float, as k2 and v are
  int64_t ld_k, head_k;
  const void* k2;  // (keys, ld_k2)
  int64_t ld_k2;
  const void* v;
  int64_t ld_v, head_v;
  float *m, *l;
  int64_t d, d2, dv, queries, keys, heads, segments, first_visible;
  bool causal, continues, unfinished;
  float scale;
};
Status attention_f16(const AttentionWork& a, Stream stream);  // d + d2 <= 256, dv <= 128; products in half, float sums
Status attention_f32(const AttentionWork& a, Stream stream);  // dv <= 128; float throughout

// x (T, H, d), strided, to half (H, T, d)
struct PackHeadsArgs {
  void* out;
  const float* x;
  int64_t ld_x, head_x, tokens, heads, d;
};
Status pack_heads(const PackHeadsArgs& a, Stream stream);

}  // namespace ivlite::cuda
