// What the kernels of absorbed attention share: which tokens a query sees, and the sums that they leave for the one that merges them.
#pragma once
#include "cache.cuh"

namespace ivlite::cuda {

// Absorbed attention as its kernels see it. Rows are (query, head); a split takes every splits-th tile of tokens, so that what it sums of
// a query does not depend on the queries beside it.
struct LatentWork {
  const float *q_latent, *q_rope;          // (rows, rank), (rows, rope_dim)
  const float *given_latent, *given_rope;  // of the newest `pending` tokens, as they were given; null: as stored
  const int32_t* length;
  float* out;                // (rows, rank)
  Int8Rows codes;            // in its place: a head's rows of tokens; null codes: not
  int padding;               // rows of it behind the last, in this launch
  float *acc, *top, *total;  // (splits, rows, columns), (rows, splits), (rows, splits)
  DeviceRows cache;
  int tokens, heads, splits, pending;
  int parts;  // of kPart columns of a latent
  int first;  // the first query of this launch, of `queries`
  int queries;
  float scale;

  __host__ __device__ int columns() const { return parts * kPart; }
  __host__ __device__ int rows() const { return queries * heads; }
  // Stored tokens that query t sees. Its own is apart where it is as given.
  __device__ int stored(int t) const { return *length + pending - tokens + t + (given_latent ? 0 : 1); }
};

constexpr int kTileParts = 7;         // at most, in latent.cu: its warps and the one of the rotary part fill the registers
constexpr float kWeightUnit = 32768;  // of softmax weights as half, so that small ones keep their bits

// Sums over no token.
IVLITE_DEVICE void leave_none(const LatentWork& a, int row, int split) {
  a.top[(int64_t)row * a.splits + split] = -INFINITY;
  a.total[(int64_t)row * a.splits + split] = 0;
}

// Leave the sums of every row and split.
Status absorbed_tiles(const LatentWork& a, CacheKind kind, Stream stream);  // not of f32
Status absorbed_plain(const LatentWork& a, CacheKind kind, Stream stream);

}  // namespace ivlite::cuda
