// The latent key/value cache: per layer, one latent and one rotated key per token.
//
// Attention that follows an append sees the appended rows as they were given and older rows as they are stored: a prompt
// within one chunk loses nothing to a small cache, and a new token never loses what it says about itself.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/memory.h"
#include "kernels/table.h"
#include "ops/views.h"

namespace ivlite {

CacheKind cache_kind(const std::string& name);  // "f32", "f16", "q8"; throws std::invalid_argument

// Bytes of one token over all layers, one per rank.
int64_t cache_token_bytes(const std::vector<int64_t>& ranks, int64_t rope_dim, CacheKind kind);

class LatentCache {
 public:
  // One layer per rank. Memory is reserved, and taken from the system as rows are written.
  LatentCache(const std::vector<int64_t>& ranks, int64_t rope_dim, int64_t capacity, CacheKind kind);

  // Writes rows length .. length + T of a layer, and keeps them as given until the next append. Throws std::invalid_argument when they do
  // not fit.
  void append(int64_t layer, const InRows& latent, const InRows& rope);
  // Called once when every layer has appended those T rows.
  void advance(int64_t tokens);
  void truncate(int64_t length);
  // Rows [s0, s0 + latent.rows) of a layer as float.
  void read(int64_t layer, int64_t s0, const OutRows& latent, const OutRows& rope) const;

  int64_t length() const { return length_; }
  int64_t visible() const { return length_ + pending_; }  // with the rows appended since the last advance
  int64_t capacity() const { return capacity_; }
  int64_t layers() const { return (int64_t)layers_.size(); }
  CacheKind kind() const { return kind_; }
  const LatentRows& layer(int64_t i) const;
  // Rows length .. visible of a layer as given, in the f32 form; null latent where they are only stored: in an f32
  // cache, after advance, or when another layer was appended since.
  LatentRows fresh(int64_t i) const;
  int64_t nbytes() const;  // of a full cache

 private:
  CacheKind kind_;
  int64_t rope_dim_, capacity_, length_ = 0, pending_ = 0, fresh_layer_ = -1;
  std::vector<float> fresh_;  // latents (pending, rank), then keys (pending, rope_dim)
  std::vector<std::unique_ptr<HugeBuffer>> memory_;
  std::vector<LatentRows> layers_;
};

}  // namespace ivlite
