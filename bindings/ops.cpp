// The operations on numpy arrays. Outputs come first and are allocated by the caller; the GIL is released while they run.
#include <memory>

#include "bindings.h"
#include "formats_by_name.h"
#include "ops/activation.h"
#include "ops/attention.h"
#include "ops/cache.h"
#include "ops/decoder.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "ops/vision.h"

namespace ivlite {
namespace {

std::unique_ptr<Weight> make_weight(const std::string& format, const std::optional<InBytes>& data, int64_t heads, int64_t rows,
                                    int64_t cols) {
  auto weight = std::make_unique<Weight>(format_named(format), heads, rows, cols);
  if (!data) return weight;
  check(data->size % (heads * rows) == 0, "the data of a weight is not rows of whole blocks of its shape");
  weight->fill(0, heads * rows, data->data, data->size / (heads * rows));
  return weight;
}

void fill_weight(Weight& w, int64_t first, const InBlocks& rows) { w.fill(first, rows.rows, rows.data, rows.row_bytes); }

Activation activation_named(const std::string& name) {
  static const std::pair<const char*, Activation> NAMES[] = {{"none", Activation::none},
                                                             {"gelu_tanh", Activation::gelu_tanh},
                                                             {"gelu_erf", Activation::gelu_erf},
                                                             {"silu_mul", Activation::silu_mul}};
  for (const auto& known : NAMES)
    if (name == known.first) return known.second;
  throw std::invalid_argument("unknown activation '" + name + "'; there are none, gelu_tanh, gelu_erf, silu_mul");
}

Linear in_linear(const Weight& w, const std::optional<InVector>& bias) { return {w, sized(bias, w.rows())}; }

void py_linear(const OutRows& y, const InRows& x, const Weight& w, const std::optional<InVector>& bias, bool accumulate,
               const std::string& activation) {
  linear(y, x, in_linear(w, bias), accumulate, activation_named(activation));
}

void py_mlp(const OutRows& y, const InRows& x, const Weight& up, const std::optional<InVector>& up_bias, const std::string& activation,
            const Weight& down, const std::optional<InVector>& down_bias, bool accumulate) {
  mlp(y, x, in_linear(up, up_bias), activation_named(activation), in_linear(down, down_bias), accumulate);
}

void py_linear_heads(const OutHeads& y, const InHeads& x, const Weight& w) {
  check_size("the heads of x", x.heads, w.heads());
  linear_heads(y, x, w, 0);
}

void py_rms_norm(const OutRows& y, const InRows& x, const InVector& w, float eps) { rms_norm(y, x, sized(w, x.cols), eps); }

void py_layer_norm(const OutRows& y, const InRows& x, const InVector& w, const InVector& b, float eps) {
  layer_norm(y, x, sized(w, x.cols), sized(b, x.cols), eps);
}

using Pair = std::pair<py::object, py::object>;  // a Weight and a bias or None

const float* in_optional(const py::object& vector, int64_t size, const char* what) {
  if (vector.is_none()) return nullptr;
  if (!py::isinstance<py::array_t<float>>(vector)) throw std::invalid_argument(what);  // a converted copy would be gone on return
  return sized(View<InVector>::of(py::reinterpret_borrow<py::array_t<float>>(vector)), size);
}

Linear in_pair(const Pair& of) {
  const Weight& w = of.first.cast<const Weight&>();
  return {w, in_optional(of.second, w.rows(), "a bias is not a vector of float32")};
}

// A layer, with the Python objects whose memory it reads.
struct HeldLayer {
  DecoderLayer layer;
  std::vector<py::object> held;
};

std::unique_ptr<HeldLayer> make_layer(const py::object& attn_norm, const Pair& q, const Pair& kv_a, const py::object& latent_norm,
                                      const py::object& uk_t, const py::object& uv, const Pair& o, const py::object& ffn_norm,
                                      const Pair& up, const Pair& down, bool interleaved, float eps, float scale) {
  const Weight &key = uk_t.cast<const Weight&>(), &value = uv.cast<const Weight&>();
  const Linear out = in_pair(o);
  constexpr const char* kNorm = "a norm's weight is not a vector of float32";
  check(!attn_norm.is_none() && !ffn_norm.is_none(), "a layer lacks a norm");
  DecoderLayer layer{in_optional(attn_norm, out.w.rows(), kNorm),
                     in_optional(ffn_norm, out.w.rows(), kNorm),
                     in_optional(latent_norm, key.rows(), kNorm),
                     in_pair(q),
                     in_pair(kv_a),
                     out,
                     in_pair(up),
                     in_pair(down),
                     key,
                     value,
                     interleaved,
                     eps,
                     scale};
  std::vector<py::object> held{attn_norm, ffn_norm, latent_norm, uk_t, uv};
  for (const Pair* pair : {&q, &kv_a, &o, &up, &down}) held.insert(held.end(), {pair->first, pair->second});
  return std::make_unique<HeldLayer>(HeldLayer{layer, held});
}

void run_layer(const HeldLayer& of, const OutRows& x, const InRows& cos, const InRows& sin, const std::vector<LatentCache*>& caches,
               const std::vector<int64_t>& rows, int64_t layer) {
  check_size("the number of caches", (int64_t)caches.size(), (int64_t)rows.size());
  std::vector<CacheRows> parts;
  for (size_t i = 0; i < rows.size(); i++) parts.push_back({caches[i], rows[i]});
  decoder_layer(x, of.layer, cos, sin, parts, layer);
}

std::unique_ptr<LatentCache> make_cache(const std::vector<int64_t>& ranks, int64_t rope_dim, int64_t capacity, const std::string& kind) {
  return std::make_unique<LatentCache>(ranks, rope_dim, capacity, cache_kind(kind));
}

void append(LatentCache& c, int64_t layer, const InRows& latent, const InRows& rope) { c.append(layer, latent, rope); }

std::pair<Made<float>, Made<float>> read(const LatentCache& c, int64_t layer, int64_t s0, int64_t s1) {
  check(s0 >= 0 && s1 >= s0 && s1 <= c.visible(), "there are no such rows in the cache");
  const LatentRows& rows = c.layer(layer);
  const int64_t n = s1 - s0;
  Made<float> latent({n, rows.rank}), rope({n, rows.rope_dim});
  c.read(layer, s0, {latent.data.get(), n, rows.rank, rows.rank}, {rope.data.get(), n, rows.rope_dim, rows.rope_dim});
  return {std::move(latent), std::move(rope)};
}

void reserve(LatentCache& c, int64_t capacity) { c.reserve(capacity); }

Made<uint8_t> dump(const LatentCache& c, int64_t first, int64_t last) {
  check(first >= 0 && first <= last && last <= c.length(), "there are no such rows in the cache");
  Made<uint8_t> out({(last - first) * c.token_bytes()});
  c.dump(out.data.get(), first, last);
  return out;
}

void restore(LatentCache& c, int64_t first, const InBytes& data) { c.restore(first, data.data, data.size); }

void py_patchify(const OutRows& y, const InFrames& frames, int64_t patch, int64_t merge, const std::vector<float>& mean,
                 const std::vector<float>& std) {
  check(mean.size() == 3 && std.size() == 3, "mean and std have three values");
  patchify(y, frames.data, frames.temporal, frames.h, frames.w, patch, merge, mean.data(), std.data());
}

std::unique_ptr<Resizer> make_resizer(int64_t in_h, int64_t in_w, int64_t out_h, int64_t out_w) {
  return std::make_unique<Resizer>(in_h, in_w, out_h, out_w);
}

void resize(const Resizer& of, const OutPixels& y, const InPixels& x) { of.run(y, x); }

void bind_weight(py::module_& m) {
  py::class_<Weight, Owned<Weight>> weight(m, "Weight", "A packed matrix (rows, cols), or one per head.");
  construct(weight, make_weight, py::arg("format"), py::arg("data"), py::arg("heads"), py::arg("rows"), py::arg("cols"),
            "data: uint8, whole blocks of every row; None: zeros, to be filled.");
  compute(weight, "fill", fill_weight, py::arg("first"), py::arg("rows"), "Packs rows, uint8 (count, row bytes), from row `first` on.");
  weight.def_property_readonly("heads", &Weight::heads)
      .def_property_readonly("rows", &Weight::rows)
      .def_property_readonly("cols", &Weight::cols)
      .def_property_readonly("nbytes", &Weight::nbytes);
}

void bind_layer(py::module_& m) {
  py::class_<HeldLayer> layer(m, "DecoderLayer", "A decoder layer of few tokens; weights come with a bias or None.");
  layer.def(py::init(&make_layer), py::arg("attn_norm"), py::arg("q"), py::arg("kv_a"), py::arg("latent_norm"), py::arg("uk_t"),
            py::arg("uv"), py::arg("o"), py::arg("ffn_norm"), py::arg("up"), py::arg("down"), py::arg("interleaved"), py::arg("eps"),
            py::arg("scale"));
  compute(layer, "run", run_layer, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("caches"), py::arg("rows"), py::arg("layer"),
          "x (T, hidden), changed in place: so many rows of each cache, which are appended to that layer of it.");
}

std::unique_ptr<ExpandedAttention> make_expanded(int64_t tokens, const LatentCache& cache, int64_t layer, const Weight& kv_b, float scale) {
  return std::make_unique<ExpandedAttention>(tokens, cache, layer, kv_b, scale);
}

void add_queries(ExpandedAttention& of, const InHeads& q_nope, const InHeads& q_rope) { of.add(q_nope, q_rope); }

bool step_expanded(ExpandedAttention& of, const OutHeads& y) { return of.step(y); }

void bind_expanded(py::module_& m) {
  py::class_<ExpandedAttention, Owned<ExpandedAttention>> work(m, "ExpandedAttention",
                                                               "expanded_attention, given its queries part by part.");
  construct(work, make_expanded, py::arg("tokens"), py::arg("cache"), py::arg("layer"), py::arg("kv_b"), py::arg("scale"),
            py::keep_alive<1, 3>(), py::keep_alive<1, 5>());
  compute(work, "add", add_queries, py::arg("q_nope"), py::arg("q_rope"), "The next queries: a multiple of 128, or the last.");
  compute(work, "step", step_expanded, py::arg("y"), "Some heads attend to a span of cached tokens; whether more is to be done.");
}

void bind_cache(py::module_& m) {
  py::class_<LatentCache, Owned<LatentCache>> cache(m, "LatentCache", "Latents and rotated keys of every layer.");
  construct(cache, make_cache, py::arg("ranks"), py::arg("rope_dim"), py::arg("capacity"), py::arg("kind"));
  compute(cache, "append", append, py::arg("layer"), py::arg("latent"), py::arg("k_rope"));
  compute(cache, "read", read, py::arg("layer"), py::arg("s0"), py::arg("s1"), "Rows [s0, s1) as float32 (latent, k_rope).");
  compute(cache, "reserve", reserve, py::arg("capacity"), "Room for at least so many tokens; rows stay.");
  compute(cache, "dump", dump, py::arg("first"), py::arg("last"), "Rows [first, last) of all layers as uint8 (n,).");
  compute(cache, "restore", restore, py::arg("first"), py::arg("data"), "Rows that dump gave, behind those there are.");
  hold(cache, "advance", &LatentCache::advance, py::arg("tokens"));
  hold(cache, "truncate", &LatentCache::truncate, py::arg("length"));
  cache.def_property_readonly("length", &LatentCache::length)
      .def_property_readonly("capacity", &LatentCache::capacity)
      .def_property_readonly("kind", [](const LatentCache& c) { return cache_kind_name(c.kind()); })
      .def_property_readonly("token_bytes", &LatentCache::token_bytes)
      .def_property_readonly("nbytes", &LatentCache::nbytes);
  const auto token_bytes = [](const std::vector<int64_t>& ranks, int64_t rope_dim, const std::string& kind) {
    return cache_token_bytes(ranks, rope_dim, cache_kind(kind));
  };
  hold(m, "cache_token_bytes", token_bytes, py::arg("ranks"), py::arg("rope_dim"), py::arg("kind"),
       "Bytes that one token takes in a cache of that kind, over all layers.");
}

void bind_resizer(py::module_& m) {
  py::class_<Resizer, Owned<Resizer>> resizer(m, "Resizer", "Bicubic resizing with antialiasing from one size to another, as in Pillow.");
  construct(resizer, make_resizer, py::arg("in_h"), py::arg("in_w"), py::arg("out_h"), py::arg("out_w"));
  release(resizer, "run", resize, py::arg("y"), py::arg("x"), "y (out_h, out_w, 3) of x (in_h, in_w, 3), uint8; in the calling thread.");
}

}  // namespace

void bind_ops(py::module_& m) {
  bind_weight(m);
  bind_resizer(m);
  bind_cache(m);
  bind_layer(m);
  bind_expanded(m);
  const auto y = py::arg("y"), x = py::arg("x"), w = py::arg("w"), scale = py::arg("scale"), layer = py::arg("layer");
  compute(m, "linear", py_linear, y, x, w, py::arg("bias"), py::arg("accumulate"), py::arg("activation") = "none");
  compute(m, "mlp", py_mlp, y, x, py::arg("up"), py::arg("up_bias"), py::arg("activation"), py::arg("down"), py::arg("down_bias"),
          py::arg("accumulate"));
  compute(m, "linear_heads", py_linear_heads, y, x, w);
  hold(m, "few_tokens", few_tokens, "The most tokens of one call of which each gets the bits of a call of its own.");
  compute(m, "rms_norm", py_rms_norm, y, x, w, py::arg("eps"));
  compute(m, "layer_norm", py_layer_norm, y, x, w, py::arg("b"), py::arg("eps"));
  compute(m, "rope", rope, y, x, py::arg("cos"), py::arg("sin"), py::arg("interleaved"));
  compute(m, "silu_mul", silu_mul, y, x);
  compute(m, "attention", attention, y, py::arg("q"), py::arg("k"), py::arg("v"), scale, py::arg("segment"), py::arg("exact"));
  compute(m, "absorbed_attention", absorbed_attention, y, py::arg("q_latent"), py::arg("q_rope"), py::arg("cache"), layer, scale);
  compute(m, "expanded_attention", expanded_attention, y, py::arg("q_nope"), py::arg("q_rope"), py::arg("cache"), layer, py::arg("kv_b"),
          scale);
  compute(m, "patchify", py_patchify, y, py::arg("frames"), py::arg("patch"), py::arg("merge"), py::arg("mean"), py::arg("std"));
}

}  // namespace ivlite
