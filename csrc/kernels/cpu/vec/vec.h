// The vector vocabulary of the instruction set that is compiled: the one that its source included first, or, for a header on
// its own, the widest that the compiler's flags allow. Every set offers all that avx2.h declares and explains.
#pragma once

#ifndef IVLITE_VEC
#if defined(__AVX512F__)
#include "kernels/cpu/vec/avx512.h"
#elif defined(__aarch64__)
#include "kernels/cpu/vec/neon.h"
#else
#include "kernels/cpu/vec/avx2.h"
#endif
#endif
