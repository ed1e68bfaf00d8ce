// Absorbed attention over 8-bit latents in integers (attention/int8.h): heads are the lanes, latents both keys and values.
#pragma once

namespace ivlite {
namespace {

struct LatentInt {
  IntWeights w;
  uint8_t* q;     // unpacked panels of heads, (panels, blocks)
  float* q_rope;  // (rope, kTileLanes)
  uint8_t* acts;  // of a block's tokens
  float* rope;    // (tokens, ldr)
  uint8_t* v;     // 64 columns interleaved
  int64_t blocks, ldr;

  LatentInt(const LatentArgs& a) : blocks(k_blocks(a.cache.rank)), ldr(odd_lines(a.cache.rope_dim)) {
    Room room{a.scratch};
    w.columns = interleaved_columns(a.cache.rank);
    w.s = room.floats(kIntKeys * kHeadGroup), w.p = (uint32_t*)room.floats(kIntKeys / 4 * kHeadGroup);
    w.top = room.floats(kHeadGroup), w.total = room.floats(kHeadGroup);
    w.shrink = room.floats(kHeadGroup), w.unit = room.floats(kHeadGroup);
    w.sums = room.floats(kHeadGroup * w.columns);
    q = room.bytes(2 * blocks * kUnpackedBytes), q_rope = room.floats(a.cache.rope_dim * kTileLanes);
    acts = room.bytes(kIntKeys * act_bytes<ActBlockU8>(blocks)), rope = room.floats(kIntKeys * ldr);
    v = room.bytes(kIntKeys * kInterleaved);
  }
};

// Row s of the cache as a act.
inline void latent_record(uint8_t* to, const LatentRows& c, int64_t s, int64_t blocks) {
  const __m512i sign = _mm512_set1_epi8((char)0x80);
  const int8_t* row = (const int8_t*)c.latent + s * c.rank;
  int64_t i = 0;
  for (; i + 64 <= c.rank; i += 64) _mm512_storeu_si512(to + i, _mm512_xor_si512(_mm512_loadu_si512(row + i), sign));
  for (; i < c.rank; i++) to[i] = (uint8_t)(row[i] ^ 0x80);
  for (; i < blocks * kBlockK; i++) to[i] = 0x80;
  for (int64_t kb = 0; kb < blocks; kb++) memcpy(to + blocks * kBlockK + 4 * kb, &c.scale[s], 4);
}

// Heads [h0, h0 + heads) of query i, in P panels of lanes.
template <int P>
inline void latent_int_heads(const LatentArgs& a, const LatentInt& b, int64_t i, int64_t h0, int64_t heads, int64_t s0, int64_t s1) {
  const LatentRows& c = a.cache;
  const int64_t row = i * a.heads + h0, panel = b.blocks * kUnpackedBytes, act = act_bytes<ActBlockU8>(b.blocks);
  const float factor = a.scale * kPowers;
  memset(b.q, 0, (size_t)(P * panel));
  for (int64_t h = 0; h < heads; h++) open_lane(b.q + h / 16 * panel, (int)(h % 16), a.q_latent + (row + h) * c.rank, c.rank, factor);
  fill(b.q_rope, c.rope_dim * kTileLanes, 0);
  rows_to_lanes(b.q_rope, c.rope_dim, 0, a.q_rope + row * c.rope_dim, c.rope_dim, heads, c.rope_dim, factor);
  fill(b.w.top, kHeadGroup, kLowest);
  fill(b.w.total, kHeadGroup, 0);
  fill(b.w.sums, 16 * P * b.w.columns, 0);
  for (int64_t s = s0; s < s1; s += kIntKeys) {
    const int64_t n = s1 - s < kIntKeys ? s1 - s : kIntKeys;
    for (int64_t t = 0; t < n; t++) {
      latent_record(b.acts + t * act, c, s + t, b.blocks);
      CacheQ8::read_rope(b.rope + t * b.ldr, c, s + t);
    }
    product<true, P>(n, b.w.s, 16 * P, 16 * P, FromZero{}, b.rope, b.ldr, b.q_rope, kTileLanes, c.rope_dim);
    const KBlocks of{b.q, panel, b.blocks, (c.rank - (b.blocks - 1) * kBlockK + 3) / 4};
    (of.quads < kBlockQuads ? multiply_tokens<VnniTile<false>, P> : multiply_tokens<VnniTile<true>, P>)(b.w.s, false, of, b.acts, n);
    for (int64_t h = 0; h < 16 * P; h += 16) int_weights<P>(b.w, c.scale + s, n, h);
    for (int64_t col = 0; col < b.w.columns; col += kInterleaved) {
      const int64_t left = c.rank - col < kInterleaved ? c.rank - col : kInterleaved;
      interleave(b.v, (const int8_t*)c.latent + s * c.rank + col, c.rank, n, left);
      weigh_lanes<P>(b.w, b.v, heads, col, left, n);
    }
  }
  for (int64_t h = 0; h < heads; h++) {
    a.m[row + h] = s1 > s0 ? b.w.top[h] / kPowers : -INFINITY;
    a.l[row + h] = b.w.total[h];
    straighten(a.acc + (row + h) * c.rank, b.w.sums + h * b.w.columns, c.rank, 1);
  }
}

void latent_int(const LatentArgs& a, int64_t s0, int64_t s1) {
  const LatentInt b(a);
  for (int64_t i = 0; i < a.queries; i++) {
    const int64_t end = a.position + i + 1 < s1 ? a.position + i + 1 : s1;
    for (int64_t h = 0; h < a.heads; h += kHeadGroup) {
      const int64_t heads = a.heads - h < kHeadGroup ? a.heads - h : kHeadGroup;
      (heads > 16 ? latent_int_heads<2> : latent_int_heads<1>)(a, b, i, h, heads, s0, end);
    }
  }
}

inline void init_attention_int(KernelTable& t) {
  t.attention_reduced = attention_int;
  t.latent_attention[(int)CacheKind::q8] = latent_int;
}

}  // namespace
}  // namespace ivlite
