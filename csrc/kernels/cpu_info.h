// What the processor and the operating system allow.
#pragma once
#include <string>

namespace ivlite {

struct CpuInfo {
  std::string name;
  bool avx2, fma, f16c, avx512f, avx512bw, avx512dq, avx512vl, avx512vnni, avxvnni, amx;
  bool dotprod, fp16, i8mm;
};

const CpuInfo& cpu_info();  // found once; a feature counts only if the system saves its registers

}  // namespace ivlite
