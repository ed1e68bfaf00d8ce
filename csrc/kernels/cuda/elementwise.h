// Launchers of what works row by row: norms, rotary embedding, activations, patches, the choice of a token, and probes.
#pragma once
#include "kernels/cuda/cuda.h"
#include "kernels/table.h"

namespace ivlite::cuda {

// norm.cu: rows of n columns; b of layer_norm alone.
struct NormArgs {
  float* y;  // (rows, ldy)
  int64_t ldy;
  const float* x;  // (rows, ldx)
  int64_t ldx;
  const float *w, *b;
  int64_t n, rows;
  float eps;
};
Status rms_norm(const NormArgs& a, Stream stream);
Status layer_norm(const NormArgs& a, Stream stream);

// rope.cu: as rope_fn, of all tokens.
Status rope(const RopeArgs& a, int64_t tokens, Stream stream);

// activation.cu: y (rows, cols) of x; of silu_mul x has 2 cols.
struct RowArgs {
  float* y;
  int64_t ldy;
  const float* x;
  int64_t ldx, cols, rows;
};
Status silu_mul(const RowArgs& a, Stream stream);
Status gelu_tanh(const RowArgs& a, Stream stream);
Status gelu_erf(const RowArgs& a, Stream stream);
Status copy_rows(const RowArgs& a, Stream stream);

// vision.cu: as patchify_fn, of all blocks.
Status patchify(const PatchArgs& a, Stream stream);

// sampling.cu
constexpr int kSampleParts = 64, kSampleBins = 2048;
struct SampledToken {
  uint32_t key;  // of its logit, in an order of integers
  int32_t id;
  int32_t bad;  // not 0: logits are NaN or infinite
};
struct SampleArgs {
  SampledToken *result, *parts;  // (rows), (rows, kSampleParts)
  const float* logits;           // (rows, ldl)
  int64_t ldl, vocab;            // vocab < 2^22
  uint32_t* seen;                // null, or a bit for each token to penalise, to which what is chosen is added: of one row
  double penalty;
  // Of sample_draw alone:
  uint32_t* keys;               // (vocab)
  int* counts;                  // (kSampleBins)
  unsigned long long* weights;  // (kSampleBins)
  double temperature, top_p, min_p, uniform;
  int64_t top_k;
};
// The likeliest token of each row.
Status sample_greedy(const SampleArgs& a, int rows, Stream stream);
// A token of one row, drawn at `uniform` in [0, 1).
Status sample_draw(const SampleArgs& a, Stream stream);

// probe.cu: `bytes` (of 16) copied by so many blocks; steps of matrix products in registers, out (256 blocks) floats.
Status probe_copy(void* to, const void* from, int64_t bytes, int blocks, Stream stream);
Status probe_matrix(float* out, int steps, int blocks, bool int8, Stream stream);
constexpr int64_t kProbeThreads = 256, kProbeProducts = 8;  // mma of each warp in a step

}  // namespace ivlite::cuda
