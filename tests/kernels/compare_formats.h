// The encoders' part of the comparison: they write the same bytes on every machine and in every build, sanitizers included.
#pragma once
#include "compare.h"
#include "formats/formats.h"

namespace ivlite {

// Weights that any machine computes alike: whole numbers over powers of two, of several magnitudes, zeros and equal rows among them.
inline std::vector<float> sample_weights(int64_t n) {
  std::vector<float> x((size_t)n);
  uint32_t state = 1;
  for (int64_t i = 0; i < n; i++) {
    state = state * 1664525 + 1013904223;
    const float value = (float)((int)(state >> 8) - (1 << 23)) / (1 << 22), size = (float)(1 << i / 256 % 5);
    x[(size_t)i] = i / 64 % 23 == 7 ? 0 : i / 64 % 23 == 11 ? 0.5f : value * size;
  }
  return x;
}

inline uint64_t fnv1a(const std::vector<uint8_t>& bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const uint8_t b : bytes) hash = (hash ^ b) * 0x100000001b3u;
  return hash;
}

// Of the bytes of each format, without and with importance: what a release build writes. A change of an encoder changes them.
struct Encoded {
  const char* name;
  uint64_t plain, weighted;
};
constexpr Encoded kEncoded[] = {
    {"f32", 0x84a68eb568f0a0b4, 0x84a68eb568f0a0b4},  {"f16", 0x9ba7550fc74b9e7c, 0x9ba7550fc74b9e7c},
    {"bf16", 0x3bea3a49dc56e823, 0x3bea3a49dc56e823}, {"q8_0", 0xb178bcd866fa5fa2, 0xb178bcd866fa5fa2},
    {"q6_k", 0x47822e3de85423b7, 0x0260de586037c02d}, {"q5_k", 0x39703743aff3aa63, 0xb94b602576354f29},
    {"q4_k", 0xf427270019837581, 0x1cf0f5832b52ef7f}, {"q4_0", 0xe1d412ac44823611, 0x98f18f2e9df82ca6},
};

inline void test_encoders(Report& r) {
  constexpr int64_t kWeights = 256 * 64;
  const std::vector<float> x = sample_weights(kWeights);
  std::vector<float> importance((size_t)kWeights);
  for (int64_t i = 0; i < kWeights; i++) importance[(size_t)i] = (float)(1 + i * 7 % 31) / 8;
  for (const FormatInfo& f : FORMATS) {
    uint64_t hashes[2] = {};
    for (int weighted = 0; weighted < 2; weighted++) {
      std::vector<uint8_t> blocks((size_t)(kWeights / f.block * f.block_bytes));
      f.encode(blocks.data(), x.data(), weighted ? importance.data() : nullptr, kWeights);
      hashes[weighted] = fnv1a(blocks);
      std::vector<float> y((size_t)kWeights);
      f.decode(y.data(), blocks.data(), kWeights);
      const double limit = f.block_bytes * 8 / f.block > 7 ? 0.02 : 0.15;  // rough: the bytes are the test
      r.near_rms(y.data(), x.data(), kWeights, {limit, 8 * limit}, std::string(f.name) + (weighted ? " with importance" : ""));
    }
    bool known = false;
    for (const Encoded& e : kEncoded)
      if (!strcmp(e.name, f.name)) known = e.plain == hashes[0] && e.weighted == hashes[1];
    char now[96];
    snprintf(now, sizeof now, "{\"%s\", 0x%016llx, 0x%016llx}", f.name, (unsigned long long)hashes[0], (unsigned long long)hashes[1]);
    r.expect(known, std::string("encodes other bytes than a release build does: ") + now);
  }
}

}  // namespace ivlite
