// What the accesses of a warp cost. Lanes run one after another, so those of one instruction are put together afterwards: the n-th
// access of each lane at one place of the code since the lanes last stood at one instruction.
#pragma once
#include <stddef.h>

#include <string>

namespace ivlite::cuda::emulator {

void begin_counting(const std::string& kernel);
void count_access(int thread, const void* p, size_t n, bool shared, bool writes, const void* place);
void count_warp(int warp);  // puts together what its lanes did
void count_all();

}  // namespace ivlite::cuda::emulator
