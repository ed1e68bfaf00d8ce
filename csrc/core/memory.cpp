#include "core/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <new>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace ivlite {

namespace {
constexpr size_t kHugePage = 2 << 20;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
}  // namespace

HugeBuffer::HugeBuffer(size_t bytes) : size_(bytes) {
  bool huge = bytes >= kHugePage;
  size_t align = huge ? kHugePage : 4096;
  mapped_ = round_up(bytes ? bytes : 1, align) + align;
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base_ == MAP_FAILED) throw std::bad_alloc();
  data_ = (void*)round_up((size_t)base_, align);
#ifdef MADV_HUGEPAGE
  if (huge) madvise(data_, round_up(bytes, align), MADV_HUGEPAGE);  // a wish: refusal costs speed only
#endif
}

HugeBuffer::~HugeBuffer() { munmap(base_, mapped_); }

namespace {
constexpr size_t kLine = 64;
#if defined(__x86_64__)
bool has_clflushopt() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 23 & 1);
}
__attribute__((target("clflushopt"))) void flush(const char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kLine) _mm_clflushopt((void*)(from + i));
  _mm_mfence();
}
#endif
}  // namespace

void evict(const void* data, size_t bytes) {
#if defined(__x86_64__)
  static const bool can = has_clflushopt();
  if (can) flush((const char*)data, bytes);
#elif defined(__aarch64__)
  for (size_t i = 0; i < bytes; i += kLine) asm volatile("dc civac, %0" ::"r"((const char*)data + i) : "memory");
  asm volatile("dsb ish" ::: "memory");
#endif
}

namespace {
struct Scratch {
  void* data = nullptr;
  size_t size = 0;
  ~Scratch() { free(data); }
};
}  // namespace

void* thread_scratch(int slot, size_t bytes) {
  thread_local Scratch slots[9];
  Scratch& s = slots[slot];
  if (s.size < bytes) {
    free(s.data);
    s.data = nullptr;
    s.size = 0;
    size_t size = round_up(bytes, 4096);
    if (posix_memalign(&s.data, 64, size)) throw std::bad_alloc();
    s.size = size;
  }
  return s.data;
}

}  // namespace ivlite
