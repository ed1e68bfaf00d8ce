#include "ops/cache.h"

#include <string.h>

#include <algorithm>

#include "core/threads.h"
#include "kernels/dispatch.h"
#include "kernels/pack.h"

namespace ivlite {
namespace {

constexpr const char* NAMES[] = {"f32", "f16", "q8", "q4"};  // by CacheKind
constexpr int64_t kPieceBytes = 1 << 20;                     // that a thread copies together

std::array<int64_t, 3> parts_of(CacheKind kind, int64_t rank, int64_t rope_dim) {
  const RowBytes row = row_bytes(kind, rank, rope_dim);
  return {row.latent, row.scale, row.rope};
}

// memcpy of `bytes`, by several threads.
void copy(void* to, const void* from, int64_t bytes) {
  parallel_for((bytes + kPieceBytes - 1) / kPieceBytes, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kPieceBytes, last = std::min(end * kPieceBytes, bytes);
    memcpy((char*)to + first, (const char*)from + first, (size_t)(last - first));
  });
}

}  // namespace

CacheKind cache_kind(const std::string& name) {
  for (int i = 0; i < kCacheKinds; i++)
    if (name == NAMES[i]) return (CacheKind)i;
  if (name == "bf16") return CacheKind::bf16;  // what "f16" was once called
  std::string all;
  for (const char* known : NAMES) all += std::string(all.empty() ? "" : ", ") + known;
  throw std::invalid_argument("unknown cache kind '" + name + "': there are " + all);
}

const char* cache_kind_name(CacheKind kind) { return NAMES[(int)kind]; }

int64_t cache_token_bytes(const std::vector<int64_t>& ranks, int64_t rope_dim, CacheKind kind) {
  int64_t bytes = 0;
  for (int64_t rank : ranks)
    for (int64_t part : parts_of(kind, rank, rope_dim)) bytes += part;
  return bytes;
}

LatentCache::LatentCache(const std::vector<int64_t>& ranks, int64_t rope_dim, int64_t capacity, CacheKind kind)
    : kind_(kind), rope_dim_(rope_dim), capacity_(capacity) {
  check(!ranks.empty() && rope_dim > 0 && capacity > 0, "a cache needs layers, a rope dimension and a capacity");
  check(rope_dim < 1 << 20, "a cache is too large");
  for (int64_t rank : ranks) {
    check(rank > 0 && rank < 1 << 20, "a cache needs ranks between 1 and a million");
    layers_.push_back({nullptr, nullptr, nullptr, rank, rope_dim});
    memory_.emplace_back();
    use(layers() - 1, allocate(part_bytes(layers() - 1), capacity));
  }
}

LatentCache::PartBytes LatentCache::part_bytes(int64_t i) const { return parts_of(kind_, layer(i).rank, rope_dim_); }

LatentCache::Memory LatentCache::allocate(const PartBytes& row, int64_t capacity) const {
  check(capacity < (int64_t)1 << 32, "a cache is too large");
  Memory memory;
  for (int part = 0; part < kParts; part++)
    if (row[part]) memory[part] = std::make_unique<HugeBuffer>((size_t)product({capacity, row[part]}), HugeBuffer::grows);
  return memory;
}

void LatentCache::use(int64_t i, Memory memory) {
  LatentRows& c = layers_[(size_t)i];
  memory_[(size_t)i] = std::move(memory);
  const Memory& now = memory_[(size_t)i];
  c.latent = now[0]->data(), c.scale = now[1] ? (float*)now[1]->data() : nullptr, c.rope = now[2]->data();
}

void LatentCache::reserve(int64_t capacity) {
  if (capacity <= capacity_) return;
  for (int64_t i = 0; i < layers(); i++) {
    const PartBytes row = part_bytes(i);
    Memory larger = allocate(row, capacity);
    for (int part = 0; part < kParts; part++)
      if (row[part]) copy(larger[part]->data(), memory_[(size_t)i][part]->data(), visible() * row[part]);
    use(i, std::move(larger));
  }
  capacity_ = capacity;
}

const LatentRows& LatentCache::layer(int64_t i) const {
  check(i >= 0 && i < layers(), "there is no such layer in the cache");
  return layers_[(size_t)i];
}

int64_t LatentCache::token_bytes() const {
  int64_t bytes = 0;
  for (int64_t i = 0; i < layers(); i++)
    for (int64_t part : part_bytes(i)) bytes += part;
  return bytes;
}

void LatentCache::append(int64_t i, const InRows& latent, const InRows& rope) {
  const LatentRows& c = layer(i);
  check_size("the columns of the latent", latent.cols, c.rank);
  check_size("the columns of the rope key", rope.cols, c.rope_dim);
  check_size("the rows of the rope key", rope.rows, latent.rows);
  check(latent.rows <= capacity_ - length_, "the cache is full");
  parallel_for(latent.rows, 16, [&](int64_t t0, int64_t t1) {
    kernels().cache_write[(int)kind_](c, length_, latent.data, latent.stride, rope.data, rope.stride, t0, t1);
  });
  pending_ = latent.rows;
  fresh_layer_ = -1;
  if (kind_ == CacheKind::f32) return;
  fresh_.resize((size_t)(latent.rows * (c.rank + c.rope_dim)));
  LatentRows fresh{fresh_.data(), nullptr, fresh_.data() + latent.rows * c.rank, c.rank, c.rope_dim};
  kernels().cache_write[(int)CacheKind::f32](fresh, 0, latent.data, latent.stride, rope.data, rope.stride, 0, latent.rows);
  fresh_layer_ = i;
}

LatentRows LatentCache::fresh(int64_t i) const {
  const LatentRows& c = layer(i);
  if (i != fresh_layer_ || pending_ == 0) return {nullptr, nullptr, nullptr, c.rank, c.rope_dim};
  float* latent = const_cast<float*>(fresh_.data());
  return {latent, nullptr, latent + pending_ * c.rank, c.rank, c.rope_dim};
}

void LatentCache::advance(int64_t tokens) {
  check_size("the number of tokens to advance by", tokens, pending_);
  length_ += tokens;
  pending_ = 0;
}

void LatentCache::truncate(int64_t length) {
  check(length >= 0 && length <= length_, "a cache can only be cut to a length it has");
  length_ = length;
  pending_ = 0;
}

void LatentCache::read(int64_t i, int64_t s0, const OutRows& latent, const OutRows& rope) const {
  const LatentRows& c = layer(i);
  check(s0 >= 0 && latent.rows <= visible() - s0, "there are no such rows in the cache");
  check(latent.cols == c.rank && rope.cols == c.rope_dim && rope.rows == latent.rows, "the arrays do not have the cache's shape");
  check(latent.stride == latent.cols && rope.stride == rope.cols, "the arrays must be contiguous");
  kernels().cache_read[(int)kind_](latent.data, rope.data, c, s0, s0 + latent.rows);
}

// A run of bytes that is contiguous both in the cache and in a dump.
struct LatentCache::Piece {
  char* stored;
  int64_t at, bytes;
};

std::vector<LatentCache::Piece> LatentCache::pieces(int64_t first, int64_t last) const {
  std::vector<Piece> all;
  int64_t at = 0;
  for (int64_t i = 0; i < layers(); i++) {
    const PartBytes row = part_bytes(i);
    for (int part = 0; part < kParts; part++) {
      if (!row[part]) continue;
      char* stored = (char*)memory_[(size_t)i][part]->data() + first * row[part];
      const int64_t bytes = (last - first) * row[part];
      for (int64_t done = 0; done < bytes; done += kPieceBytes)
        all.push_back({stored + done, at + done, std::min(kPieceBytes, bytes - done)});
      at += bytes;
    }
  }
  return all;
}

void LatentCache::dump(uint8_t* out, int64_t first, int64_t last) const {
  check(first >= 0 && first <= last && last <= length_, "there are no such rows in the cache");
  const std::vector<Piece> all = pieces(first, last);
  parallel_for((int64_t)all.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) memcpy(out + all[(size_t)i].at, all[(size_t)i].stored, (size_t)all[(size_t)i].bytes);
  });
}

void LatentCache::restore(int64_t first, const uint8_t* data, int64_t bytes) {
  const int64_t row = token_bytes(), tokens = bytes / row;
  check_size("the row that restored rows begin at", first, length_);
  check(bytes >= 0 && bytes % row == 0, "restored data is not whole rows of this cache");
  check(tokens <= capacity_ - length_, "the cache is full");
  const std::vector<Piece> all = pieces(first, first + tokens);
  pending_ = 0;
  fresh_layer_ = -1;
  parallel_for((int64_t)all.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) memcpy(all[(size_t)i].stored, data + all[(size_t)i].at, (size_t)all[(size_t)i].bytes);
  });
  length_ += tokens;
}

}  // namespace ivlite
