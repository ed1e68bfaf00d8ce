// Norms, rotary embedding, activations, patches, the choice of a token, and probes of _C.cuda.
#include "kernels/cuda/elementwise.h"

#include <array>
#include <string>
#include <tuple>
#include <utility>

#include "cuda.h"

namespace ivlite {
namespace {

using namespace cuda;

using Rows = std::pair<uintptr_t, int64_t>;  // address, elements from row to row

NormArgs norm_args(const Rows& y, const Rows& x, uintptr_t w, uintptr_t b, int64_t n, int64_t rows, float eps) {
  return {pointer<float>(y.first), y.second, pointer<float>(x.first), x.second, pointer<float>(w), pointer<float>(b), n, rows, eps};
}

Status py_rms_norm(const Rows& y, const Rows& x, uintptr_t w, int64_t n, int64_t rows, float eps, uintptr_t stream) {
  return rms_norm(norm_args(y, x, w, 0, n, rows, eps), pointer<void>(stream));
}

Status py_layer_norm(const Rows& y, const Rows& x, uintptr_t w, uintptr_t b, int64_t n, int64_t rows, float eps, uintptr_t stream) {
  return layer_norm(norm_args(y, x, w, b, n, rows, eps), pointer<void>(stream));
}

// x: address, elements from token to token and from head to head
Status py_rope(uintptr_t y, const std::tuple<uintptr_t, int64_t, int64_t>& x, uintptr_t cos, uintptr_t sin, int64_t heads, int64_t d,
               bool interleaved, int64_t tokens, uintptr_t stream) {
  const auto [at, ldx, ldh] = x;
  return cuda::rope({pointer<float>(y), pointer<float>(at), ldx, ldh, pointer<float>(cos), pointer<float>(sin), heads, d, interleaved},
                    tokens, pointer<void>(stream));
}

template <Status (*kernel)(const RowArgs&, Stream)>
Status py_rows(const Rows& y, const Rows& x, int64_t cols, int64_t rows, uintptr_t stream) {
  return kernel({pointer<float>(y.first), y.second, pointer<float>(x.first), x.second, cols, rows}, pointer<void>(stream));
}

Status py_patchify(uintptr_t out, uintptr_t frames, int64_t temporal, int64_t h, int64_t w, int64_t patch, int64_t merge,
                   const std::array<float, 3>& mean, const std::array<float, 3>& std, uintptr_t stream) {
  PatchArgs a{pointer<float>(out), pointer<uint8_t>(frames), temporal, h, w, patch, merge, {}, {}};
  for (int i = 0; i < 3; i++) a.mean[i] = mean[(size_t)i], a.std[i] = std[(size_t)i];
  return cuda::patchify(a, pointer<void>(stream));
}

SampleArgs sample_args(uintptr_t result, uintptr_t parts, const Rows& logits, int64_t vocab, uintptr_t seen, double penalty) {
  SampleArgs a{};
  a.result = pointer<SampledToken>(result), a.parts = pointer<SampledToken>(parts), a.logits = pointer<float>(logits.first);
  a.ldl = logits.second, a.vocab = vocab, a.seen = pointer<uint32_t>(seen), a.penalty = penalty;
  return a;
}

Status py_sample_greedy(uintptr_t result, uintptr_t parts, const Rows& logits, int64_t vocab, uintptr_t seen, double penalty, int rows,
                        uintptr_t stream) {
  return sample_greedy(sample_args(result, parts, logits, vocab, seen, penalty), rows, pointer<void>(stream));
}

// work: keys, counts, weights
Status py_sample_draw(uintptr_t result, uintptr_t parts, const Rows& logits, int64_t vocab, uintptr_t seen, double penalty,
                      const std::array<uintptr_t, 3>& work, double temperature, int64_t top_k, double top_p, double min_p, double uniform,
                      uintptr_t stream) {
  SampleArgs a = sample_args(result, parts, logits, vocab, seen, penalty);
  a.keys = pointer<uint32_t>(work[0]), a.counts = pointer<int>(work[1]), a.weights = pointer<unsigned long long>(work[2]);
  a.temperature = temperature, a.top_k = top_k, a.top_p = top_p, a.min_p = min_p, a.uniform = uniform;
  return sample_draw(a, pointer<void>(stream));
}

Status py_probe_copy(uintptr_t to, uintptr_t from, int64_t bytes, int blocks, uintptr_t stream) {
  return probe_copy(pointer<void>(to), pointer<void>(from), bytes, blocks, pointer<void>(stream));
}

Status py_probe_matrix(uintptr_t out, int steps, int blocks, bool int8, uintptr_t stream) {
  return probe_matrix(pointer<float>(out), steps, blocks, int8, pointer<void>(stream));
}

// Operations of one step of one block: a multiply-add counts as two.
int64_t probe_matrix_ops(bool int8) { return kProbeThreads / 32 * kProbeProducts * 2 * 16 * 8 * (int8 ? 32 : 16); }

// Bytes of a cached token's latent, scales and key.
std::array<int64_t, 3> cache_row_bytes(const std::string& kind, int64_t rank, int64_t rope_dim) {
  const CacheKind of = kind == "f32" ? CacheKind::f32 : kind == "q8" ? CacheKind::q8 : kind == "q4" ? CacheKind::q4 : CacheKind::bf16;
  const RowBytes row = row_bytes(of, rank, rope_dim);
  return {row.latent, row.scale, row.rope};
}

}  // namespace

void bind_cuda_elementwise(py::module_& m) {
  launcher(m, "rms_norm", py_rms_norm, "y and x: (address, row stride) of `rows` rows of n columns.");
  launcher(m, "layer_norm", py_layer_norm);
  launcher(m, "rope", py_rope);
  launcher(m, "silu_mul", py_rows<cuda::silu_mul>, "y and x: (address, row stride) of `rows` rows, y of `cols` columns.");
  launcher(m, "gelu_tanh", py_rows<cuda::gelu_tanh>);
  launcher(m, "gelu_erf", py_rows<cuda::gelu_erf>);
  launcher(m, "copy_rows", py_rows<cuda::copy_rows>);
  launcher(m, "patchify", py_patchify);
  launcher(m, "sample_greedy", py_sample_greedy, "The likeliest token of each row: see kernels/cuda/elementwise.h.");
  launcher(m, "sample_draw", py_sample_draw);
  launcher(m, "probe_copy", py_probe_copy, "Copies `bytes` with so many blocks.");
  launcher(m, "probe_matrix", py_probe_matrix, "Matrix products in registers.");
  release(m, "cache_row_bytes", cache_row_bytes, "Bytes of a token's latent, scales and key in a cache of that kind.");
  release(m, "probe_matrix_ops", probe_matrix_ops, "Operations of one step of one block.");
}

}  // namespace ivlite
