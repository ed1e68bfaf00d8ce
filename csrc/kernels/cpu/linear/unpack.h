// The walk of linear layers of many tokens: panels are opened to bytes or words once for all tokens, by folds of kBlockK columns
// with one scale of a token's activations each. Opened, of each instruction set, says how:
//   kFormat, kPanels, kBytes      what is opened, how many panels are multiplied together, bytes of a panel's opened fold
//   open(to, panel, g0, groups)   opens groups [g0, g0 + groups) of a panel, 4 at most, as one fold; what is missing is zero
//   Record                        of a token: kCodes bytes and kTail more per fold, made by round(codes, tail, x, n) of n
//                                 values and zeros behind them; and kBlockFolds, the folds whose records lie together
//   Tile                          run<T, P>(sums, first, of, records): sums (T, P, 16) += P opened panels x T <= kTokens records,
//                                 or = where `first`
#pragma once

namespace ivlite {
namespace {

constexpr int64_t kFoldLines = kBlockK / 4, kFoldGroups = kBlockK / kGroup;
constexpr int64_t kOpenedTokens = 1024;  // that one opening serves: their sums stay in L2

inline int64_t folds_of(int64_t cols) { return (cols + kBlockK - 1) / kBlockK; }

// Of n folds: their codes, then their tails.
template <class Record>
constexpr int64_t record_bytes(int64_t folds) {
  return folds * (Record::kCodes + Record::kTail);
}

// Records of all tokens of the first kBlockFolds folds, then of the next.
template <class Record>
void round_records(uint16_t* out, int64_t tokens, int64_t cols, const Part& p) {
  const int64_t folds = folds_of(cols), last = folds_of(p.c1);
  for (int64_t f = p.c0 / kBlockK, f0 = f / Record::kBlockFolds * Record::kBlockFolds; f < last; f0 += Record::kBlockFolds) {
    const int64_t n = folds - f0 < Record::kBlockFolds ? folds - f0 : Record::kBlockFolds, begin = f, end = f0 + n < last ? f0 + n : last;
    uint8_t* records = (uint8_t*)out + tokens * record_bytes<Record>(f0);
    for (int64_t t = p.t0; t < p.t1; t++)
      for (f = begin; f < end; f++) {
        uint8_t* record = records + t * record_bytes<Record>(n);
        const int64_t at = f - f0, left = p.c1 - f * kBlockK;
        Record::round(record + at * Record::kCodes, record + n * Record::kCodes + at * Record::kTail, p.x + t * p.ldx + f * kBlockK - p.c0,
                      left < kBlockK ? left : kBlockK);
      }
  }
}

// What P opened panels are multiplied by: `folds` folds, of the last of which `lines` lines are not zero.
struct Folds {
  const uint8_t* w;
  int64_t stride;  // bytes from panel to panel
  int64_t folds, lines;
};

// Asks for what of the next T records lies beside step `step` of these, of kSteps per fold: to the processor's own prefetcher
// a tile's rows are streams that end where it has just found them.
template <class Record, int T, int kSteps>
inline void ask_ahead(const uint8_t* records, int64_t record, int64_t step) {
  constexpr int kLinesEach = (T * record_bytes<Record>(1) + 64 * kSteps - 1) / (64 * kSteps);
  const uint8_t* next = records + T * record + 64 * kLinesEach * step;
  for (int i = 0; i < kLinesEach; i++) __builtin_prefetch(next + 64 * i);
}

// Any number of tokens.
template <class Tile, int P, int T = Tile::kTokens>
inline void fold_tokens(float* sums, bool first, const Folds& of, const uint8_t* records, int64_t tokens) {
  if constexpr (T == Tile::kTokens)
    for (; tokens >= T; tokens -= T, sums += T * P * 16, records += T * record_bytes<typename Tile::Record>(of.folds))
      Tile::template run<T, P>(sums, first, of, records);
  if constexpr (T > 1) {
    if (tokens == T - 1) return Tile::template run<T - 1, P>(sums, first, of, records);
    fold_tokens<Tile, P, T - 1>(sums, first, of, records, tokens);
  }
}

// P panels from p on x tokens [t, t + tokens).
template <class Opened, int P>
inline void opened_panels(const LinearArgs& a, int64_t p, int64_t t, int64_t tokens) {
  using Record = typename Opened::Record;
  constexpr int64_t kBlock = Record::kBlockFolds, kStride = kBlock * Opened::kBytes;
  const int64_t groups = a.xq.cols / kGroup, folds = folds_of(a.xq.cols);
  const int64_t panel = layout_bytes(panel_layout(Opened::kFormat), groups);
  uint8_t* opened = (uint8_t*)a.scratch;
  float* sums = (float*)(opened + Opened::kPanels * kStride);
  for (int64_t f0 = 0; f0 < folds; f0 += kBlock) {
    const int64_t n = folds - f0 < kBlock ? folds - f0 : kBlock;
    for (int k = 0; k < P; k++)
      for (int64_t f = f0; f < f0 + n; f++) {
        const int64_t g = f * kFoldGroups, left = groups - g < kFoldGroups ? groups - g : kFoldGroups;
        Opened::open(opened + k * kStride + (f - f0) * Opened::kBytes, (const uint8_t*)a.panels + (p + k) * panel, g, left);
      }
    const uint8_t* records = (const uint8_t*)a.gemm_x + a.tokens * record_bytes<Record>(f0) + t * record_bytes<Record>(n);
    fold_tokens<typename Opened::Tile, P>(sums, f0 == 0, {opened, kStride, n, kFoldLines}, records, tokens);
  }
  for (int64_t i = 0; i < tokens; i++)
    for (int k = 0; k < P; k++)
      for (int j = 0; j < kPanel; j += vec::kLanes) store_rows(a, t + i, (p + k) * kPanel + j, vec::load(sums + (i * P + k) * kPanel + j));
}

template <class Opened>
void linear_opened(const LinearArgs& a, int64_t p0, int64_t p1) {
  static_assert(Opened::kPanels * (Opened::Record::kBlockFolds * Opened::kBytes + kOpenedTokens * kPanel * 4) <= kGemmScratch);
  static_assert(Opened::Record::kCodes + Opened::Record::kTail <= 2 * kBlockK + kBlockScales);
  for (int64_t t = 0; t < a.tokens; t += kOpenedTokens) {
    const int64_t tokens = a.tokens - t < kOpenedTokens ? a.tokens - t : kOpenedTokens;
    int64_t p = p0;
    for (; p + Opened::kPanels <= p1; p += Opened::kPanels) opened_panels<Opened, Opened::kPanels>(a, p, t, tokens);
    for (; p < p1; p++) opened_panels<Opened, 1>(a, p, t, tokens);
  }
}

template <class Opened>
inline void set_opened(KernelTable& t) {
  t.linear_gemm[(int)Opened::kFormat] = linear_opened<Opened>;
  t.quantize_gemm[(int)Opened::kFormat] = round_records<typename Opened::Record>;
}

}  // namespace
}  // namespace ivlite
