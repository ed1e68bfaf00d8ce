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

HugeBuffer::HugeBuffer(size_t bytes, Filling filling) : size_(bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  bool huge = bytes >= kHugePage;
  size_t align = huge ? kHugePage : 4096;
  mapped_ = round_up(bytes ? bytes : 1, align) + align;
  base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base_ == MAP_FAILED) throw std::bad_alloc();
  data_ = (void*)round_up((size_t)base_, align);
#ifdef MADV_HUGEPAGE
  const size_t small = huge && filling == grows ? kHugePage : 0;  // wishes: refusal costs speed or memory only
  if (small) madvise(data_, small, MADV_NOHUGEPAGE);
  if (huge && bytes > small) madvise((char*)data_ + small, round_up(bytes, align) - small, MADV_HUGEPAGE);
#endif
}

HugeBuffer::~HugeBuffer() { munmap(base_, mapped_); }

void* allocate(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  const bool huge = bytes >= 2 * kHugePage;
  void* data = nullptr;
  if (posix_memalign(&data, huge ? kHugePage : 64, bytes ? bytes : 1)) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (huge) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

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

struct Buffer {
  void* data = nullptr;
  size_t size = 0;
  ~Buffer() { clear(); }
  void clear() {
    free(data);
    data = nullptr;
    size = 0;
  }
};

Buffer* buffers() {
  thread_local Buffer of_thread[(int)Scratch::count];
  return of_thread;
}

}  // namespace

void* thread_scratch(Scratch use, size_t bytes) {
  Buffer& b = buffers()[(int)use];
  if (b.size < bytes) {
    if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
    b.clear();
    const size_t size = round_up(bytes, 4096);
    if (posix_memalign(&b.data, 64, size)) {
      b.data = nullptr;
      throw std::bad_alloc();
    }
    b.size = size;
  }
  return b.data;
}

void free_thread_scratch() {
  for (int i = 0; i < (int)Scratch::count; i++) buffers()[i].clear();
}

}  // namespace ivlite
