// The latent key/value cache: per layer, one latent and one rotated key per token.
//
// Attention that follows an append sees older rows as they are stored. Of the appended rows, expanded attention, of many tokens, sees
// all as they were given: a prompt within one chunk loses nothing to a small cache. Absorbed attention, of few tokens, sees so only a
// query's own row, and those before it as stored: a new token never loses what it says about itself, and gets the same bits whether it
// comes alone or with others.
//
// Rows as bytes, as `dump` writes and `restore` reads them: layer after layer, of each layer all rows' latents, then all rows' scales,
// then all rows' keys, in the formats of LatentRows (kernels/table.h), without padding, numbers little endian. They depend on the kind, the
// ranks and the rope dimension, not on the capacity, the threads or the instruction set.
#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "core/memory.h"
#include "kernels/table.h"
#include "ops/views.h"

namespace ivlite {

CacheKind cache_kind(const std::string& name);  // "f32", "f16", "q8", "q4"; throws std::invalid_argument
const char* cache_kind_name(CacheKind kind);

// Bytes of one token over all layers, one per rank.
int64_t cache_token_bytes(const std::vector<int64_t>& ranks, int64_t rope_dim, CacheKind kind);

class LatentCache {
 public:
  // One layer per rank. Memory is reserved, and taken from the system as rows are written.
  LatentCache(const std::vector<int64_t>& ranks, int64_t rope_dim, int64_t capacity, CacheKind kind);

  // Room for at least `capacity` tokens. Rows are moved layer by layer, so that memory holds one layer twice at most. After an exception
  // (std::bad_alloc, Stopped) the cache is as it was.
  void reserve(int64_t capacity);

  // Writes rows length .. length + T of a layer, and keeps them as given until the next append. Throws std::invalid_argument when they do
  // not fit.
  void append(int64_t layer, const InRows& latent, const InRows& rope);
  // Called once when every layer has appended those T rows.
  void advance(int64_t tokens);
  void truncate(int64_t length);
  // Rows [s0, s0 + latent.rows) of a layer as float.
  void read(int64_t layer, int64_t s0, const OutRows& latent, const OutRows& rope) const;

  // Rows [first, last) of all layers, below length, as bytes; and such bytes put back as rows from `first` on, which is the length.
  // The bytes are only checked for their number: what they say is as good as their source.
  void dump(uint8_t* out, int64_t first, int64_t last) const;
  void restore(int64_t first, const uint8_t* data, int64_t bytes);

  int64_t length() const { return length_; }
  int64_t visible() const { return length_ + pending_; }  // with the rows appended since the last advance
  int64_t capacity() const { return capacity_; }
  int64_t layers() const { return (int64_t)layers_.size(); }
  CacheKind kind() const { return kind_; }
  const LatentRows& layer(int64_t i) const;
  // Rows length .. visible of a layer as given, in the f32 form; null latent where they are only stored: in an f32
  // cache, after advance, or when another layer was appended since.
  LatentRows fresh(int64_t i) const;
  int64_t token_bytes() const;
  int64_t nbytes() const { return capacity_ * token_bytes(); }  // of a full cache

 private:
  static constexpr int kParts = 3;  // of a row: latent, scale, key
  using PartBytes = std::array<int64_t, kParts>;
  using Memory = std::array<std::unique_ptr<HugeBuffer>, kParts>;
  struct Piece;
  PartBytes part_bytes(int64_t layer) const;
  Memory allocate(const PartBytes& row, int64_t capacity) const;
  void use(int64_t layer, Memory memory);
  std::vector<Piece> pieces(int64_t first, int64_t last) const;

  CacheKind kind_;
  int64_t rope_dim_, capacity_, length_ = 0, pending_ = 0, fresh_layer_ = -1;
  std::vector<float> fresh_;  // latents (pending, rank), then keys (pending, rope_dim)
  std::vector<Memory> memory_;
  std::vector<LatentRows> layers_;
};

}  // namespace ivlite
