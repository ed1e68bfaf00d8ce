// The panel layout of table.h as code: sizes, and the repacking of rows of blocks.
#pragma once
#include <stdint.h>

#include "kernels/table.h"

namespace ivlite {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Bytes of one packed panel of 16 rows.
int64_t panel_bytes(Format format, int64_t cols);

// Packs rows [16 p, 16 p + 16) of a matrix whose rows are `row_bytes` apart into `panel`; rows from `rows` on are zero.
// A row holds `cols` weights and may hold padding after them, which is left out.
void pack_panel(void* panel, Format format, const uint8_t* blocks, int64_t row_bytes, int64_t rows, int64_t cols, int64_t p);

}  // namespace ivlite
