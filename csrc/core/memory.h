// Aligned host memory for weights and scratch.
#pragma once
#include <stddef.h>

namespace ivlite {

// Anonymous memory of at least `bytes`, zeroed, aligned to 2 MB and backed by huge pages where the system grants them:
// reading weights is 20-40 % faster so. One that grows, being filled from its start, has small pages in its first 2 MB: the system
// takes no more memory than twice what is filled. Throws std::bad_alloc.
class HugeBuffer {
 public:
  enum Filling { whole, grows };
  explicit HugeBuffer(size_t bytes, Filling filling = whole);
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

// Memory to be freed with free(), in huge pages where it is large: filling it is some times faster so. Throws std::bad_alloc.
void* allocate(size_t bytes);

// Drops [data, data + bytes) from all caches, so that the next read is one of memory. Where the processor has no
// instruction for it that is fast, nothing happens.
void evict(const void* data, size_t bytes);

// Buffers of a thread's scratch, by what they hold: what is held at the same time is apart.
enum class Scratch {
  inputs,       // quantized activations of a linear layer, latents of an expansion
  kernel,       // an attention kernel's own, and latents read for it
  keys_values,  // of one head, expanded
  parts,        // of split attention; rotated keys
  gemm,         // a GEMM kernel's own
  gate,         // both halves of a gated product
  activated,    // outputs of an MLP's first product
  inner,        // the same, quantized for the second
  decoder,      // arrays between a decoder layer's operations
  count
};

// The calling thread's own scratch of at least `bytes`, 64-byte aligned, kept until the thread ends or frees it. Throws
// std::bad_alloc.
void* thread_scratch(Scratch use, size_t bytes);
void free_thread_scratch();

}  // namespace ivlite
