#include "ops/rope.h"

#include <algorithm>

#include "core/threads.h"
#include "kernels/dispatch.h"

namespace ivlite {

void rope(const OutHeads& y, const InHeads& x, const InRows& cos, const InRows& sin, bool interleaved) {
  check(x.dim > 0 && x.dim % 2 == 0, "rope needs an even head dimension");
  check(y.tokens == x.tokens && y.heads == x.heads && y.dim == x.dim, "y must have the shape of x");
  check(y.head_stride == y.dim && y.token_stride == y.heads * y.dim, "y must be contiguous");
  for (const InRows* angles : {&cos, &sin}) {
    check_size("the rows of cos and sin", angles->rows, x.tokens);
    check_size("the columns of cos and sin", angles->cols, x.dim / 2);
    check(angles->stride == angles->cols, "cos and sin must be contiguous");
  }
  RopeArgs a{y.data, x.data, x.token_stride, x.head_stride, cos.data, sin.data, x.heads, x.dim, interleaved};
  int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, x.heads * x.dim));
  parallel_for(x.tokens, grain, [&](int64_t t0, int64_t t1) { kernels().rope(a, t0, t1); });
}

}  // namespace ivlite
