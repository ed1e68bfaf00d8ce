#include "ops/activation.h"

#include <algorithm>

#include "core/threads.h"
#include "kernels/dispatch.h"

namespace ivlite {

void silu_mul(const OutRows& y, const InRows& x) {
  check_size("the rows of y", y.rows, x.rows);
  check(x.cols % 2 == 0, "x must have an even number of columns");
  check_size("the columns of y", y.cols, x.cols / 2);
  check(y.stride == y.cols && x.stride == x.cols, "silu_mul needs contiguous arrays");
  parallel_for(x.rows, std::max<int64_t>(1, 4096 / std::max<int64_t>(1, y.cols)),
               [&](int64_t t0, int64_t t1) { kernels().silu_mul(y.data, y.cols, x.data, x.data + y.cols, x.cols, y.cols, t0, t1); });
}

}  // namespace ivlite
