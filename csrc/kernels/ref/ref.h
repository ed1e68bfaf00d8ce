// The plain kernels, by family: each fills its entries of the table.
#pragma once
#include "kernels/table.h"

namespace ivlite {

void init_ref_linear(KernelTable& t);
void init_ref_norm(KernelTable& t);
void init_ref_rope(KernelTable& t);
void init_ref_activation(KernelTable& t);
void init_ref_attention(KernelTable& t);
void init_ref_cache(KernelTable& t);
void init_ref_vision(KernelTable& t);

}  // namespace ivlite
