#include <string.h>

#include "bindings.h"
#include "core/memory.h"
#include "kernels/dispatch.h"
#include "ops/linear.h"

namespace ivlite {
namespace {

using Entry = bool (*)(const KernelTable& a, const KernelTable& b);  // whether the two tables differ in it
struct Named {
  const char* name;
  Entry differs;
};

#define ENTRY(name)                                                                    \
  {                                                                                    \
#name, [](const KernelTable& a, const KernelTable& b) { return a.name != b.name; } \
  }
#define ENTRIES(name)                                                                                            \
  {                                                                                                              \
#name, [](const KernelTable& a, const KernelTable& b) { return memcmp(a.name, b.name, sizeof a.name) != 0; } \
  }
const Named TABLE[] = {
    ENTRIES(linear),
    ENTRIES(linear_gemm),
    ENTRIES(quantize_gemm),
    ENTRY(quantize_rows),
    ENTRY(rms_norm),
    ENTRY(layer_norm),
    ENTRY(rope),
    ENTRY(silu_mul),
    ENTRY(gelu_tanh),
    ENTRY(gelu_erf),
    ENTRY(attention),
    ENTRY(packed_attention.attention),
    ENTRIES(latent_attention),
    ENTRIES(cache_write),
    ENTRIES(cache_read),
    ENTRY(patchify),
    ENTRY(resize_rows),
    ENTRY(resize_columns),
    ENTRY(int8_peak),
    ENTRY(matrix_peak),
    ENTRIES(read_streams),
};
#undef ENTRY
#undef ENTRIES

// The entries of the table that this instruction set does itself.
std::vector<std::string> overrides(const std::string& isa) {
  KernelTable plain = isa_table("ref"), own = isa_table(isa);
  std::vector<std::string> out;
  for (const Named& entry : TABLE)
    if (entry.differs(plain, own)) out.push_back(entry.name);
  return out;
}

// What an integer linear layer multiplies by: codes (T, padded), scale and sum (T, groups), halves (T, groups, 2), shift.
py::tuple quantize_rows(const InRows& in) {
  int64_t padded = (in.cols + kGroup - 1) / kGroup * kGroup;
  py::array_t<int8_t> q({in.rows, padded});
  py::array_t<float> scale({in.rows, padded / kGroup});
  py::array_t<int32_t> sum({in.rows, padded / kGroup}), halves({in.rows, padded / kGroup, (int64_t)2});
  py::array_t<float> shift({in.rows, padded / kGroup});
  QuantRows out{q.mutable_data(), scale.mutable_data(), sum.mutable_data(), halves.mutable_data(), shift.mutable_data(), padded};
  kernels().quantize_rows(out, {in.data, in.stride, 0, in.rows, 0, in.cols});
  return py::make_tuple(q, scale, sum, halves, shift);
}

void gelu(const OutFlat& y, const InFlat& x, bool exact) {
  check_size("the size of y", y.size, x.size);
  (exact ? kernels().gelu_erf : kernels().gelu_tanh)(y.data, x.data, 0, x.size);
}

}  // namespace

void bind_testing(py::module_& m) {
  hold(m, "known_isas", known_isas, "Every instruction set this build has kernels for.");
  hold(m, "use_isa", use_isa, py::arg("isa"), "Puts that instruction set's kernels in use.");
  hold(m, "overrides", overrides, py::arg("isa"), "The table entries that this instruction set does itself.");
  compute(m, "gelu", gelu, py::arg("y"), py::arg("x"), py::arg("exact"), "y = gelu(x), contiguous float32.");
  hold(m, "quantize_rows", quantize_rows, py::arg("x"),
       "float32 (T, n) -> int8 codes; per 32 columns float32 scales, int32 sums, two half sums, float32 scale x sum.");
}

}  // namespace ivlite
