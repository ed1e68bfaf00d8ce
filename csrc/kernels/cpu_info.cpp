#include "kernels/cpu_info.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace ivlite {
namespace {

#if defined(__x86_64__)
uint64_t saved_registers() {  // XGETBV of XCR0: which register files the system saves
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

// Tile registers are saved (XCR0), and this process has asked Linux for them: 8 KB per thread are not granted unasked.
bool may_use_tiles(uint64_t saved) {
  if ((saved >> 17 & 3) != 3) return false;
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::string brand() {
  uint32_t r[13] = {0};
  if (__get_cpuid_max(0x80000000, nullptr) < 0x80000004) return "unknown x86-64";
  for (uint32_t i = 0; i < 3; i++) __get_cpuid(0x80000002 + i, r + 4 * i, r + 4 * i + 1, r + 4 * i + 2, r + 4 * i + 3);
  std::string name((const char*)r);
  size_t first = name.find_first_not_of(' '), last = name.find_last_not_of(' ');
  return first == std::string::npos ? "unknown x86-64" : name.substr(first, last - first + 1);
}

CpuInfo find() {
  CpuInfo info{};
  info.name = brand();
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return info;  // no OSXSAVE: no AVX at all
  uint64_t saved = saved_registers();
  bool ymm = (saved & 0x06) == 0x06, zmm = (saved & 0xe6) == 0xe6;
  info.fma = ymm && (c >> 12 & 1);
  info.f16c = ymm && (c >> 29 & 1);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return info;
  info.avx2 = ymm && (b >> 5 & 1);
  info.avx512f = zmm && (b >> 16 & 1);
  info.avx512dq = zmm && (b >> 17 & 1);
  info.avx512bw = zmm && (b >> 30 & 1);
  info.avx512vl = zmm && (b >> 31 & 1);
  info.avx512vnni = zmm && (c >> 11 & 1);
  info.amx = zmm && (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1) && may_use_tiles(saved);  // bf16, tile and int8
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) info.avxvnni = ymm && (a >> 4 & 1);
  return info;
}
#elif defined(__aarch64__) && defined(__linux__)
CpuInfo find() {
  constexpr unsigned long kHalf = 1 << 10, kDotProducts = 1 << 20, kMatrixInt8 = 1 << 13;  // HWCAP_ASIMDHP, _ASIMDDP, HWCAP2_I8MM
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  CpuInfo info{};
  info.name = "arm64";
  info.fp16 = first & kHalf;
  info.dotprod = first & kDotProducts;
  info.i8mm = second & kMatrixInt8;
  return info;
}
#elif defined(__aarch64__) && defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value;
}

CpuInfo find() {
  CpuInfo info{};
  char name[256] = "arm64";
  size_t size = sizeof name;
  sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0);
  info.name = name;
  info.fp16 = has("hw.optional.arm.FEAT_FP16");
  info.dotprod = has("hw.optional.arm.FEAT_DotProd");
  info.i8mm = has("hw.optional.arm.FEAT_I8MM");
  return info;
}
#else
CpuInfo find() {
  CpuInfo info{};
  info.name = "unknown";
  return info;
}
#endif

}  // namespace

const CpuInfo& cpu_info() {
  static const CpuInfo info = find();
  return info;
}

}  // namespace ivlite
