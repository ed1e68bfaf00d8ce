// The panel layout of table.h as code: sizes, and the repacking of rows of blocks.
#pragma once
#include <stdint.h>

#include "kernels/table.h"

namespace ivlite {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Bytes of one packed panel of 16 rows.
int64_t panel_bytes(Format format, int64_t cols);

// Packs rows [r0, r1) of the 16 of a panel, `row_bytes` apart from `blocks` on; nothing else is written. A row holds `cols`
// weights and may hold padding after them, which is left out.
void pack_rows(void* panel, Format format, const uint8_t* blocks, int64_t row_bytes, int64_t r0, int64_t r1, int64_t cols);

}  // namespace ivlite
