#include "ops/cache.h"

#include "core/threads.h"
#include "kernels/dispatch.h"
#include "kernels/pack.h"

namespace ivlite {
namespace {

struct Sizes {
  int64_t latent, scale, rope;  // bytes per latent value, per row, per rope value
};
constexpr Sizes SIZES[3] = {{4, 0, 4}, {2, 0, 2}, {1, 4, 2}};  // by CacheKind
constexpr const char* NAMES[3] = {"f32", "f16", "q8"};

}  // namespace

CacheKind cache_kind(const std::string& name) {
  for (int i = 0; i < 3; i++)
    if (name == NAMES[i]) return (CacheKind)i;
  if (name == "bf16") return CacheKind::bf16;  // what "f16" was once called
  throw std::invalid_argument("unknown cache kind '" + name + "': there are f32, f16, q8");
}

int64_t cache_token_bytes(const std::vector<int64_t>& ranks, int64_t rope_dim, CacheKind kind) {
  int64_t bytes = 0;
  const Sizes& size = SIZES[(int)kind];
  for (int64_t rank : ranks) bytes += rank * size.latent + size.scale + rope_dim * size.rope;
  return bytes;
}

LatentCache::LatentCache(const std::vector<int64_t>& ranks, int64_t rope_dim, int64_t capacity, CacheKind kind)
    : kind_(kind), rope_dim_(rope_dim), capacity_(capacity) {
  check(!ranks.empty() && rope_dim > 0 && capacity > 0, "a cache needs layers, a rope dimension and a capacity");
  check(rope_dim < 1 << 20 && capacity < (int64_t)1 << 32, "a cache is too large");
  const Sizes& size = SIZES[(int)kind];
  for (int64_t rank : ranks) {
    check(rank > 0 && rank < 1 << 20, "a cache needs ranks between 1 and a million");
    int64_t latent = round_up(product({capacity, rank, size.latent}), 64), scale = round_up(capacity * size.scale, 64);
    memory_.push_back(std::make_unique<HugeBuffer>((size_t)(latent + scale + product({capacity, rope_dim, size.rope}))));
    char* base = (char*)memory_.back()->data();
    layers_.push_back({base, scale ? (float*)(base + latent) : nullptr, base + latent + scale, rank, rope_dim});
  }
}

const LatentRows& LatentCache::layer(int64_t i) const {
  check(i >= 0 && i < layers(), "there is no such layer in the cache");
  return layers_[(size_t)i];
}

int64_t LatentCache::nbytes() const {
  int64_t bytes = 0;
  const Sizes& size = SIZES[(int)kind_];
  for (const LatentRows& c : layers_) bytes += capacity_ * (c.rank * size.latent + size.scale + rope_dim_ * size.rope);
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

}  // namespace ivlite
