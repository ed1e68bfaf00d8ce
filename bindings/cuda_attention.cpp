// The latent cache and attention of _C.cuda.
#include "kernels/cuda/attention.h"

#include <array>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "cuda.h"

namespace ivlite {
namespace {

using namespace cuda;

constexpr const char* KINDS[] = {"f32", "f16", "q8", "q4"};  // by CacheKind
constexpr const char* OPERANDS[] = {"f32", "bf16", "f16"};   // by Operand

template <size_t N>
int named(const char* const (&names)[N], const std::string& name) {
  for (size_t i = 0; i < N; i++)
    if (name == names[i]) return (int)i;
  throw std::invalid_argument("there is no '" + name + "'");
}
CacheKind kind_named(const std::string& name) { return (CacheKind)named(KINDS, name); }

// (address of its place, rank, rope dimension, kind)
using PyLayer = std::tuple<uintptr_t, int64_t, int64_t, std::string>;
CacheLayer layer_of(const PyLayer& x) {
  const auto& [place, rank, rope_dim, kind] = x;
  return {pointer<LayerPlace>(place), rank, rope_dim, kind_named(kind)};
}

// (rows, elements from row to row), or that and elements from head to head
using Matrix = std::pair<uintptr_t, int64_t>;
using Heads = std::tuple<uintptr_t, int64_t, int64_t>;
using Two = std::pair<uintptr_t, uintptr_t>;
// (queries, heads, columns that are not rotated, rotated queries, codes or 0)
using Queries = std::tuple<Heads, int64_t, int64_t, uintptr_t, uintptr_t>;

QueryArgs queries_of(const Queries& x, int64_t tokens) {
  const auto& [q, heads, nope, rope, codes] = x;
  QueryArgs a{pointer<float>(std::get<0>(q)), std::get<1>(q), std::get<2>(q), heads, nope, pointer<float>(rope), {}};
  if (codes && tokens > kFewRows) throw std::invalid_argument("at most 16 tokens are rounded to int8");
  if (codes) a.nope_codes = int8_rows(pointer<void>(codes), heads, tokens, nope);
  return a;
}

Status py_append(const PyLayer& layer, uintptr_t length, const Matrix& latent, uintptr_t norm, float eps, const Matrix& rope,
                 const Two& angles, bool interleaved, const Two& given, int64_t tokens, const std::optional<Queries>& queries,
                 uintptr_t stream) {
  AppendArgs a{};
  a.cache = layer_of(layer), a.length = pointer<int32_t>(length), a.tokens = tokens;
  a.latent = pointer<float>(latent.first), a.ld_latent = latent.second, a.norm = pointer<float>(norm), a.eps = eps;
  a.rope = pointer<float>(rope.first), a.ld_rope = rope.second, a.interleaved = interleaved;
  a.cos = pointer<float>(angles.first), a.sin = pointer<float>(angles.second);
  a.given_latent = pointer<float>(given.first), a.given_rope = pointer<float>(given.second);
  if (queries) a.queries = queries_of(*queries, tokens);
  return append_rows(a, pointer<void>(stream));
}

Status py_read(const PyLayer& layer, int64_t first, int64_t count, int64_t stored, const Two& given, const std::string& as,
               const Matrix& latent, const Matrix& rope, uintptr_t stream) {
  ReadArgs a{};
  a.cache = layer_of(layer), a.first = first, a.rows = count, a.stored = stored;
  a.given_latent = pointer<float>(given.first), a.given_rope = pointer<float>(given.second), a.as = (Operand)named(OPERANDS, as);
  a.latent = pointer<void>(latent.first), a.ld_latent = latent.second, a.rope = pointer<void>(rope.first), a.ld_rope = rope.second;
  return read_rows(a, pointer<void>(stream));
}

Status py_absorbed(uintptr_t out, uintptr_t codes, uintptr_t q_latent, uintptr_t q_rope, const PyLayer& layer, const Two& given,
                   uintptr_t length, int64_t pending, int64_t tokens, int64_t heads, int64_t splits, float scale, uintptr_t workspace,
                   int64_t workspace_floats, uintptr_t stream) {
  AbsorbedArgs a{};
  if (codes && tokens > kFewRows) throw std::invalid_argument("at most 16 tokens are rounded to int8");
  if (codes) a.codes = int8_rows(pointer<void>(codes), heads, tokens, std::get<1>(layer));
  a.out = pointer<float>(out), a.q_latent = pointer<float>(q_latent), a.q_rope = pointer<float>(q_rope);
  a.cache = layer_of(layer);
  a.given_latent = pointer<float>(given.first), a.given_rope = pointer<float>(given.second), a.length = pointer<int32_t>(length);
  a.pending = pending, a.tokens = tokens, a.heads = heads, a.splits = splits, a.scale = scale;
  a.workspace = pointer<float>(workspace), a.workspace_floats = workspace_floats;
  return absorbed_attention(a, pointer<void>(stream));
}

// sizes: d, d2, dv, queries, keys, heads, segments
Status py_attention(const std::string& as, const Heads& out, const Heads& q, const Heads& q2, const Heads& k, const Matrix& k2,
                    const Heads& v, const Two& state, const std::array<int64_t, 7>& sizes, bool causal, int64_t first_visible,
                    bool continues, bool unfinished, float scale, uintptr_t stream) {
  AttentionWork a{};
  std::tie(a.out, a.ld_out, a.head_out) = std::make_tuple(pointer<float>(std::get<0>(out)), std::get<1>(out), std::get<2>(out));
  std::tie(a.q, a.ld_q, a.head_q) = std::make_tuple(pointer<const float>(std::get<0>(q)), std::get<1>(q), std::get<2>(q));
  std::tie(a.q2, a.ld_q2, a.head_q2) = std::make_tuple(pointer<const float>(std::get<0>(q2)), std::get<1>(q2), std::get<2>(q2));
  std::tie(a.k, a.ld_k, a.head_k) = std::make_tuple(pointer<const void>(std::get<0>(k)), std::get<1>(k), std::get<2>(k));
  std::tie(a.v, a.ld_v, a.head_v) = std::make_tuple(pointer<const void>(std::get<0>(v)), std::get<1>(v), std::get<2>(v));
  a.k2 = pointer<void>(k2.first), a.ld_k2 = k2.second, a.m = pointer<float>(state.first), a.l = pointer<float>(state.second);
  a.d = sizes[0], a.d2 = sizes[1], a.dv = sizes[2], a.queries = sizes[3], a.keys = sizes[4], a.heads = sizes[5], a.segments = sizes[6];
  a.causal = causal, a.first_visible = first_visible, a.continues = continues, a.unfinished = unfinished, a.scale = scale;
  return (as == "f32" ? attention_f32 : attention_f16)(a, pointer<void>(stream));
}

Status py_pack(uintptr_t out, const Heads& x, int64_t tokens, int64_t heads, int64_t d, uintptr_t stream) {
  return pack_heads({pointer<void>(out), pointer<float>(std::get<0>(x)), std::get<1>(x), std::get<2>(x), tokens, heads, d},
                    pointer<void>(stream));
}

std::tuple<int64_t, int64_t, int64_t> py_row_bytes(const std::string& kind, int64_t rank, int64_t rope_dim) {
  const RowBytes row = row_bytes(kind_named(kind), rank, rope_dim);
  return {row.latent, row.scale, row.rope};
}

}  // namespace

void bind_cuda_attention(py::module_& m) {
  launcher(
      m, "append_rows", py_append, py::arg("cache"), py::arg("length"), py::arg("latent"), py::arg("norm"), py::arg("eps"), py::arg("rope"),
      py::arg("angles"), py::arg("interleaved"), py::arg("given"), py::arg("tokens"), py::arg("queries"), py::arg("stream"),
      "Appends T rows to a layer, (address of its latents', scales' and keys' addresses and the capacity, rank, rope dimension, kind). "
      "latent and rope: (address, row stride); norm, the two angles (cos, sin) and the two arrays `given` may be 0. queries: None, or "
      "((address, row stride, head stride), heads, columns that are not rotated, rotated queries, codes of the others or 0).");
  launcher(m, "read_rows", py_read, py::arg("cache"), py::arg("first"), py::arg("rows"), py::arg("stored"), py::arg("given"),
           py::arg("as_"), py::arg("latent"), py::arg("rope"), py::arg("stream"), "Rows of a layer as \"f32\", \"bf16\" or \"f16\".");
  launcher(m, "absorbed_attention", py_absorbed, py::arg("out"), py::arg("codes"), py::arg("q_latent"), py::arg("q_rope"), py::arg("cache"),
           py::arg("given"), py::arg("length"), py::arg("pending"), py::arg("tokens"), py::arg("heads"), py::arg("splits"),
           py::arg("scale"), py::arg("workspace"), py::arg("workspace_floats"), py::arg("stream"),
           "Absorbed attention of T queries, to out, or rounded to codes; see kernels/cuda/attention.h.");
  release(m, "absorbed_query_floats", absorbed_query_floats, py::arg("heads"), py::arg("rank"), py::arg("splits"),
          "Floats of workspace that a query needs.");
  launcher(m, "attention", py_attention, py::arg("as_"), py::arg("out"), py::arg("q"), py::arg("q2"), py::arg("k"), py::arg("k2"),
           py::arg("v"), py::arg("state"), py::arg("sizes"), py::arg("causal"), py::arg("first_visible"), py::arg("continues"),
           py::arg("unfinished"), py::arg("scale"), py::arg("stream"),
           "Attention over keys and values in \"f16\" or \"f32\". Arrays: (address, row stride, head stride); sizes: d, d2, dv, queries, "
           "keys, heads, segments.");
  launcher(m, "pack_heads", py_pack, py::arg("out"), py::arg("x"), py::arg("tokens"), py::arg("heads"), py::arg("d"), py::arg("stream"),
           "x (T, H, d) float32, strided, to half (H, T, d).");
}

}  // namespace ivlite
