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

using Released = py::gil_scoped_release;

std::unique_ptr<Weight> make_weight(const std::string& format, const py::object& data, int64_t heads, int64_t rows, int64_t cols) {
  Format f = format_named(format);
  if (data.is_none()) return std::make_unique<Weight>(f, heads, rows, cols);
  need(py::isinstance<Bytes>(data), "the data of a weight is not uint8");
  const Bytes bytes = data.cast<Bytes>();
  const uint8_t* from = in_bytes(bytes);
  int64_t size = bytes.shape(0);
  Released release;
  auto weight = std::make_unique<Weight>(f, heads, rows, cols);
  check(size % (heads * rows) == 0, "the data of a weight is not rows of whole blocks of its shape");
  weight->fill(0, heads * rows, from, size / (heads * rows));
  return weight;
}

void py_fill(Weight& w, int64_t first, const Bytes& rows) {
  need(rows.ndim() == 2 && (rows.flags() & py::array::c_style), "rows must be contiguous uint8 (count, bytes of a row)");
  const uint8_t* from = rows.data();
  int64_t count = rows.shape(0), bytes = rows.shape(1);
  Released release;
  w.fill(first, count, from, bytes);
}

Activation activation_named(const std::string& name) {
  static const std::pair<const char*, Activation> NAMES[] = {{"none", Activation::none},
                                                             {"gelu_tanh", Activation::gelu_tanh},
                                                             {"gelu_erf", Activation::gelu_erf},
                                                             {"silu_mul", Activation::silu_mul}};
  for (const auto& known : NAMES)
    if (name == known.first) return known.second;
  throw std::invalid_argument("unknown activation '" + name + "'; there are none, gelu_tanh, gelu_erf, silu_mul");
}

Linear in_linear(const Weight& w, const py::object& bias) {
  if (bias.is_none()) return {w, nullptr};
  need(py::isinstance<Floats>(bias), "a bias is not a vector of float32");  // a converted copy would be gone on return
  return {w, in_vector(bias.cast<Floats>(), w.rows())};
}

void py_linear(Floats y, const Floats& x, const Weight& w, const py::object& bias, bool accumulate, const std::string& activation) {
  OutRows out = out_rows(y);
  InRows in = in_rows(x);
  Activation then = activation_named(activation);
  Linear of = in_linear(w, bias);
  Released release;
  linear(out, in, of, accumulate, then);
}

void py_mlp(Floats y, const Floats& x, const Weight& up, const py::object& up_bias, const std::string& activation, const Weight& down,
            const py::object& down_bias, bool accumulate) {
  OutRows out = out_rows(y);
  InRows in = in_rows(x);
  Activation between = activation_named(activation);
  Linear first = in_linear(up, up_bias), second = in_linear(down, down_bias);
  Released release;
  mlp(out, in, first, between, second, accumulate);
}

void py_linear_heads(Floats y, const Floats& x, const Weight& w) {
  OutHeads out = out_heads(y);
  InHeads in = in_heads(x);
  Released release;
  need(in.heads == w.heads(), "x does not have the heads of the weight");
  linear_heads(out, in, w, 0);
}

void py_rms_norm(Floats y, const Floats& x, const Floats& w, float eps) {
  OutRows out = out_rows(y);
  InRows in = in_rows(x);
  const float* weight = in_vector(w, in.cols);
  Released release;
  rms_norm(out, in, weight, eps);
}

void py_layer_norm(Floats y, const Floats& x, const Floats& w, const Floats& b, float eps) {
  OutRows out = out_rows(y);
  InRows in = in_rows(x);
  const float *weight = in_vector(w, in.cols), *bias = in_vector(b, in.cols);
  Released release;
  layer_norm(out, in, weight, bias, eps);
}

void py_rope(Floats y, const Floats& x, const Floats& cos, const Floats& sin, bool interleaved) {
  OutHeads out = out_heads(y);
  InHeads in = in_heads(x);
  InRows c = in_rows(cos), s = in_rows(sin);
  Released release;
  rope(out, in, c, s, interleaved);
}

void py_silu_mul(Floats y, const Floats& x) {
  OutRows out = out_rows(y);
  InRows in = in_rows(x);
  Released release;
  silu_mul(out, in);
}

void py_attention(Floats y, const Floats& q, const Floats& k, const Floats& v, float scale, int64_t segment, bool exact) {
  OutHeads out = out_heads(y);
  InHeads a = in_heads(q), b = in_heads(k), c = in_heads(v);
  Released release;
  attention(out, a, b, c, scale, segment, exact);
}

void py_absorbed(Floats y, const Floats& q_latent, const Floats& q_rope, const LatentCache& cache, int64_t layer, float scale) {
  OutHeads out = out_heads(y);
  InHeads a = in_heads(q_latent), b = in_heads(q_rope);
  Released release;
  absorbed_attention(out, a, b, cache, layer, scale);
}

void py_expanded(Floats y, const Floats& q_nope, const Floats& q_rope, const LatentCache& cache, int64_t layer, const Weight& kv_b,
                 float scale) {
  OutHeads out = out_heads(y);
  InHeads a = in_heads(q_nope), b = in_heads(q_rope);
  Released release;
  expanded_attention(out, a, b, cache, layer, kv_b, scale);
}

using Pair = std::pair<py::object, py::object>;  // a Weight and a bias or None

Linear in_pair(const Pair& of) { return in_linear(of.first.cast<const Weight&>(), of.second); }

const float* in_optional(const py::object& vector, int64_t size) {
  if (vector.is_none()) return nullptr;
  need(py::isinstance<Floats>(vector), "a norm's weight is not a vector of float32");
  return in_vector(vector.cast<Floats>(), size);
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
  need(!attn_norm.is_none() && !ffn_norm.is_none(), "a layer lacks a norm");
  DecoderLayer layer{in_optional(attn_norm, out.w.rows()),
                     in_optional(ffn_norm, out.w.rows()),
                     in_optional(latent_norm, key.rows()),
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

void py_decoder_layer(const HeldLayer& of, Floats x, const Floats& cos, const Floats& sin, LatentCache& cache, int64_t layer) {
  OutRows out = out_rows(x);
  InRows c = in_rows(cos), s = in_rows(sin);
  Released release;
  decoder_layer(out, of.layer, c, s, cache, layer);
}

void py_patchify(Floats y, const Bytes& frames, int64_t patch, int64_t merge, const std::vector<float>& mean,
                 const std::vector<float>& std) {
  OutRows out = out_rows(y);
  need(frames.ndim() == 4 && (frames.flags() & py::array::c_style) && frames.shape(3) == 3,
       "frames must be contiguous uint8 (temporal, h, w, 3)");
  need(mean.size() == 3 && std.size() == 3, "mean and std have three values");
  const uint8_t* pixels = frames.data();
  int64_t temporal = frames.shape(0), h = frames.shape(1), w = frames.shape(2);
  Released release;
  patchify(out, pixels, temporal, h, w, patch, merge, mean.data(), std.data());
}

void bind_weight(py::module_& m) {
  py::class_<Weight>(m, "Weight", "A packed matrix (rows, cols), or one per head.")
      .def(py::init(&make_weight), py::arg("format"), py::arg("data"), py::arg("heads"), py::arg("rows"), py::arg("cols"),
           "data: uint8, whole blocks of every row; None: zeros, to be filled.")
      .def("fill", py_fill, py::arg("first"), py::arg("rows").noconvert(), "Packs rows, uint8 (count, row bytes), from row `first` on.")
      .def_property_readonly("heads", &Weight::heads)
      .def_property_readonly("rows", &Weight::rows)
      .def_property_readonly("cols", &Weight::cols)
      .def_property_readonly("nbytes", &Weight::nbytes);
}

void bind_layer(py::module_& m) {
  py::class_<HeldLayer>(m, "DecoderLayer", "A decoder layer of few tokens; weights come with a bias or None.")
      .def(py::init(&make_layer), py::arg("attn_norm"), py::arg("q"), py::arg("kv_a"), py::arg("latent_norm"), py::arg("uk_t"),
           py::arg("uv"), py::arg("o"), py::arg("ffn_norm"), py::arg("up"), py::arg("down"), py::arg("interleaved"), py::arg("eps"),
           py::arg("scale"))
      .def("run", py_decoder_layer, py::arg("x").noconvert(), py::arg("cos").noconvert(), py::arg("sin").noconvert(), py::arg("cache"),
           py::arg("layer"), "x (T, hidden), changed in place; appends T rows to that layer of the cache.");
}

void bind_cache(py::module_& m) {
  py::class_<LatentCache>(m, "LatentCache", "Latents and rotated keys of every layer.")
      .def(py::init([](const std::vector<int64_t>& ranks, int64_t rope_dim, int64_t capacity, const std::string& kind) {
             return std::make_unique<LatentCache>(ranks, rope_dim, capacity, cache_kind(kind));
           }),
           py::arg("ranks"), py::arg("rope_dim"), py::arg("capacity"), py::arg("kind"))
      .def(
          "append",
          [](LatentCache& c, int64_t layer, const Floats& latent, const Floats& rope) {
            InRows a = in_rows(latent), b = in_rows(rope);
            Released release;
            c.append(layer, a, b);
          },
          py::arg("layer"), py::arg("latent").noconvert(), py::arg("k_rope").noconvert())
      .def("advance", &LatentCache::advance, py::arg("tokens"))
      .def("truncate", &LatentCache::truncate, py::arg("length"))
      .def(
          "read",
          [](const LatentCache& c, int64_t layer, int64_t s0, int64_t s1) {
            need(s1 >= s0, "the last row must not come before the first");
            const LatentRows& rows = c.layer(layer);
            Floats latent({s1 - s0, rows.rank}), rope({s1 - s0, rows.rope_dim});
            c.read(layer, s0, out_rows(latent), out_rows(rope));
            return py::make_tuple(latent, rope);
          },
          py::arg("layer"), py::arg("s0"), py::arg("s1"), "Rows [s0, s1) as float32 (latent, k_rope).")
      .def_property_readonly("length", &LatentCache::length)
      .def_property_readonly("capacity", &LatentCache::capacity)
      .def_property_readonly("nbytes", &LatentCache::nbytes);
}

}  // namespace

void bind_ops(py::module_& m) {
  bind_weight(m);
  bind_cache(m);
  bind_layer(m);
  // noconvert: an array of another type is refused rather than copied, for a copied output would be lost.
  auto y = py::arg("y").noconvert();
  auto x = py::arg("x").noconvert();
  m.def("linear", py_linear, y, x, py::arg("w"), py::arg("bias"), py::arg("accumulate"), py::arg("activation") = "none");
  m.def("mlp", py_mlp, y, x, py::arg("up"), py::arg("up_bias"), py::arg("activation"), py::arg("down"), py::arg("down_bias"),
        py::arg("accumulate"));
  m.def("linear_heads", py_linear_heads, y, x, py::arg("w"));
  m.def("rms_norm", py_rms_norm, y, x, py::arg("w").noconvert(), py::arg("eps"));
  m.def("layer_norm", py_layer_norm, y, x, py::arg("w").noconvert(), py::arg("b").noconvert(), py::arg("eps"));
  m.def("rope", py_rope, y, x, py::arg("cos").noconvert(), py::arg("sin").noconvert(), py::arg("interleaved"));
  m.def("silu_mul", py_silu_mul, y, x);
  m.def("attention", py_attention, y, py::arg("q").noconvert(), py::arg("k").noconvert(), py::arg("v").noconvert(), py::arg("scale"),
        py::arg("segment"), py::arg("exact"));
  m.def("absorbed_attention", py_absorbed, y, py::arg("q_latent").noconvert(), py::arg("q_rope").noconvert(), py::arg("cache"),
        py::arg("layer"), py::arg("scale"));
  m.def("expanded_attention", py_expanded, y, py::arg("q_nope").noconvert(), py::arg("q_rope").noconvert(), py::arg("cache"),
        py::arg("layer"), py::arg("kv_b"), py::arg("scale"));
  m.def("patchify", py_patchify, y, py::arg("frames").noconvert(), py::arg("patch"), py::arg("merge"), py::arg("mean"), py::arg("std"));
}

}  // namespace ivlite
