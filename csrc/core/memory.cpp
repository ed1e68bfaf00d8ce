#include "core/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <new>

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
