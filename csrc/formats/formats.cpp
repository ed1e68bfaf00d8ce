#include "formats/formats.h"

#include "formats/bf16.h"
#include "formats/f16.h"
#include "formats/f32.h"
#include "formats/q4_0.h"
#include "formats/q4_k.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"

namespace ivlite {

namespace {
// For formats in which importance changes nothing.
template <void (*encode)(void*, const float*, int64_t)>
void plainly(void* blocks, const float* x, const float*, int64_t n) {
  encode(blocks, x, n);
}
}  // namespace

const FormatInfo FORMATS[kFormatCount] = {
    {"f32", 0, 1, 4, false, decode_f32, plainly<encode_f32>},     {"f16", 1, 1, 2, false, decode_f16, plainly<encode_f16>},
    {"bf16", 30, 1, 2, false, decode_bf16, plainly<encode_bf16>}, {"q8_0", 8, 32, 34, true, decode_q8_0, plainly<encode_q8_0>},
    {"q6_k", 14, 256, 210, true, decode_q6_k, encode_q6_k},       {"q5_k", 13, 256, 176, true, decode_q5_k, encode_q5_k},
    {"q4_k", 12, 256, 144, true, decode_q4_k, encode_q4_k},       {"q4_0", 2, 32, 18, true, decode_q4_0, encode_q4_0},
};

}  // namespace ivlite
