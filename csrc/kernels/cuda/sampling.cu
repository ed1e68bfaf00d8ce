// The choice of a token from a row of logits, as src/ivlite/engine/sampling.py makes it.
//
// A kept set is always a prefix of the tokens in one order: likeliest first, ties by id. So each setting is a cut in that order, and
// the draw is the token at which the running weight passes a target. Logits become keys whose order as integers is theirs as
// floats. Weights exp((logit - top) / temperature) are integers with kFraction fractional bits: sums do not depend on the
// order, and are those of the CPU's doubles to about 1e-9. A histogram over the first 11 bits of the keys is made by many
// blocks; then one block finds each cut by counting ever finer digits of the keys within one bin.
#include <math.h>

#include "intrinsics.h"
#include "kernels/cuda/elementwise.h"

namespace ivlite::cuda {
namespace {

using Weight = unsigned long long;
constexpr int kThreads = 256, kSearchThreads = 1024, kBins = kSampleBins, kPerThread = kBins / kSearchThreads, kFraction = 45;
constexpr double kBelowOne = 1 - 1e-15;

IVLITE_DEVICE uint32_t key_of(float x) {
  const uint32_t bits = bits_of(x + 0.0f);  // -0 is as likely as 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
IVLITE_DEVICE float value_of(uint32_t key) { return float_of(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key); }

IVLITE_DEVICE bool earlier(const SampledToken& a, const SampledToken& b) { return a.key != b.key ? a.key > b.key : a.id < b.id; }

// The earliest of the threads' tokens, in thread 0; bad if any is. shared: kThreads of them.
IVLITE_DEVICE SampledToken block_best(SampledToken mine, SampledToken* shared) {
  shared[thread_x()] = mine;
  sync_block();
  for (int half = block_threads() / 2; half; half /= 2) {
    if (thread_x() < half) {
      const SampledToken other = shared[thread_x() + half];
      if (earlier(other, mine)) mine.key = other.key, mine.id = other.id;
      mine.bad |= other.bad;
      shared[thread_x()] = mine;
    }
    sync_block();
  }
  return mine;
}

IVLITE_DEVICE bool seen(const uint32_t* bits, int64_t id) { return bits && (bits[id / 32] >> id % 32 & 1); }

IVLITE_DEVICE float penalised(float logit, double penalty) {
  const double x = logit, y = x > 0 ? x / penalty : x * penalty;
  return (float)(y > 3.4e38 ? 3.4e38 : y < -3.4e38 ? -3.4e38 : y);
}

// Keys of a block's part of a row, and its best token.
IVLITE_KERNEL void sample_keys(SampleArgs a) {
  SampledToken* shared = shared_memory<SampledToken>();
  const int64_t row = block_y(), part = (a.vocab + kSampleParts - 1) / kSampleParts;
  const int64_t first = block_x() * part, last = first + part < a.vocab ? first + part : a.vocab;
  const float* logits = a.logits + row * a.ldl;
  SampledToken best{0, 0x7FFFFFFF, 0};
  for (int64_t i = first + thread_x(); i < last; i += kThreads) {
    float x = logits[i];
    if (seen(a.seen, i)) x = penalised(x, a.penalty);
    if (!(x <= 3.4028235e38f)) best.bad = 1;
    const uint32_t key = key_of(x);
    if (a.keys) a.keys[row * a.vocab + i] = key;
    if (earlier({key, (int32_t)i, 0}, best)) best.key = key, best.id = (int32_t)i;
  }
  if (a.counts && row == 0)
    for (int i = block_x() * kThreads + thread_x(); i < kBins; i += kSampleParts * kThreads) a.counts[i] = 0, a.weights[i] = 0;
  best = block_best(best, shared);
  if (thread_x() == 0) a.parts[row * kSampleParts + block_x()] = best;
}

// The best of all parts; where that is the answer, it is written, and marked as seen.
IVLITE_KERNEL void sample_best(SampleArgs a) {
  SampledToken* shared = shared_memory<SampledToken>();
  SampledToken best = block_best(a.parts[block_x() * kSampleParts + thread_x()], shared);
  if (thread_x()) return;
  if (!(value_of(best.key) >= -3.4028235e38f)) best.bad = 1;
  a.result[block_x()] = best;
  if (a.seen && !best.bad) a.seen[best.id / 32] |= 1u << best.id % 32;
}

struct Weigher {
  double top, temperature;
  IVLITE_DEVICE double share(uint32_t key) const { return exp(((double)value_of(key) - top) / temperature); }
  IVLITE_DEVICE Weight weight(uint32_t key) const { return (Weight)(share(key) * (double)(1ull << kFraction) + 0.5); }
};

IVLITE_DEVICE SampledToken best_part(const SampleArgs& a) {
  SampledToken best = a.parts[0];
  for (int i = 1; i < kSampleParts; i++) {
    const SampledToken other = a.parts[i];
    if (earlier(other, best)) best.key = other.key, best.id = other.id;
    best.bad |= other.bad;
  }
  return best;
}

struct Histogram {
  Weight* weights;
  int* counts;
  IVLITE_DEVICE void clear() const {
    for (int i = thread_x(); i < kBins; i += block_threads()) weights[i] = 0, counts[i] = 0;
    sync_block();
  }
  IVLITE_DEVICE void add(int bin, Weight weight) const {
    atomic_add(&counts[bin], 1);
    if (weight) atomic_add(&weights[bin], weight);
  }
};

IVLITE_KERNEL void sample_histogram(SampleArgs a) {
  Weight* memory = shared_memory<Weight>();
  const Histogram mine{memory, (int*)(memory + kBins)};
  const Weigher by{(double)value_of(best_part(a).key), a.temperature};
  const int64_t part = (a.vocab + kSampleParts - 1) / kSampleParts, first = block_x() * part;
  const int64_t last = first + part < a.vocab ? first + part : a.vocab;
  mine.clear();
  for (int64_t i = first + thread_x(); i < last; i += kThreads) mine.add(a.keys[i] >> 21, by.weight(a.keys[i]));
  sync_block();
  for (int i = thread_x(); i < kBins; i += kThreads)
    if (mine.counts[i]) {
      atomic_add(&a.counts[i], mine.counts[i]);
      if (mine.weights[i]) atomic_add(&a.weights[i], mine.weights[i]);
    }
}

// What lies up to a place in the order.
struct Running {
  Weight weight;
  int count;
};

// The place of a token: what is kept are those with a larger key, and those with this key and no larger id.
struct Cut {
  uint32_t key, id;
  Running through;
};

// Whether enough has come: so many tokens, or so much weight, at least or (strictly) more.
struct Target {
  double amount;
  bool of_weight, strictly;
  IVLITE_DEVICE bool reached(const Running& r) const {
    const double have = of_weight ? (double)r.weight : (double)r.count;
    return r.count && (strictly ? have > amount : have >= amount);
  }
};

struct Found {
  int bin;  // -1: nowhere
  Running before;
};

// A block's search through the row of keys.
struct Search {
  const SampleArgs& a;
  Weigher by;
  Histogram fine;
  Running* scan;  // (kSearchThreads)
  Found* found;

  // The bin, in the order of `place`, in which the target is reached; `before` is what came before all of them.
  template <class Place>
  IVLITE_DEVICE Found bin_of(const Weight* weights, const int* counts, const Running& before, const Target& target, Place place) {
    Running mine{0, 0};
    for (int i = 0; i < kPerThread; i++) {
      const int bin = place(thread_x() * kPerThread + i);
      mine.weight += weights[bin], mine.count += counts[bin];
    }
    scan[thread_x()] = mine;
    if (thread_x() == 0) found->bin = -1;
    sync_block();
    for (int back = 1; back < kSearchThreads; back *= 2) {
      const Running earlier_ones = thread_x() >= back ? scan[thread_x() - back] : Running{0, 0};
      sync_block();
      scan[thread_x()].weight += earlier_ones.weight, scan[thread_x()].count += earlier_ones.count;
      sync_block();
    }
    Running at{before.weight + scan[thread_x()].weight - mine.weight, before.count + scan[thread_x()].count - mine.count};
    for (int i = 0; i < kPerThread; i++) {
      const int bin = place(thread_x() * kPerThread + i);
      const Running next{at.weight + weights[bin], at.count + counts[bin]};
      if (counts[bin] && target.reached(next) && !target.reached(at)) *found = {bin, at};
      at = next;
    }
    sync_block();
    const Found result = *found;
    sync_block();
    return result;
  }

  // Counts the tokens of which `digit` gives a bin, not -1.
  template <class Digit>
  IVLITE_DEVICE void count(Digit digit) {
    fine.clear();
    for (int64_t i = thread_x(); i < a.vocab; i += kSearchThreads) {
      const int bin = digit(a.keys[i], (uint32_t)i);
      if (bin >= 0) fine.add(bin, by.weight(a.keys[i]));
    }
    sync_block();
  }

  // The first token at which the target is reached; the last of all where it is not.
  IVLITE_DEVICE Cut first(const Target& target) {
    const auto down = [](int i) { return kBins - 1 - i; };
    const auto up = [](int i) { return i; };
    Found at = bin_of(a.weights, a.counts, {0, 0}, target, down);
    if (at.bin < 0) return {0, 0xFFFFFFFFu, everything()};
    uint32_t key = (uint32_t)at.bin << 21;
    count([&](uint32_t k, uint32_t) { return k >> 21 == key >> 21 ? (int)(k >> 10 & 2047) : -1; });
    at = bin_of(fine.weights, fine.counts, at.before, target, down);
    key |= (uint32_t)at.bin << 10;
    count([&](uint32_t k, uint32_t) { return k >> 10 == key >> 10 ? (int)(k & 1023) : -1; });
    at = bin_of(fine.weights, fine.counts, at.before, target, down);
    key |= (uint32_t)at.bin;
    count([&](uint32_t k, uint32_t i) { return k == key ? (int)(i >> 11) : -1; });  // equal logits: the smaller ids first
    at = bin_of(fine.weights, fine.counts, at.before, target, up);
    const uint32_t high = (uint32_t)at.bin;
    count([&](uint32_t k, uint32_t i) { return k == key && i >> 11 == high ? (int)(i & 2047) : -1; });
    at = bin_of(fine.weights, fine.counts, at.before, target, up);
    return {key, high << 11 | (uint32_t)at.bin, {at.before.weight + by.weight(key), at.before.count + 1}};
  }

  IVLITE_DEVICE Running everything() { return above(0); }

  // What has a key of at least `key`.
  IVLITE_DEVICE Running above(uint32_t key) {
    count([&](uint32_t k, uint32_t) { return k >> 21 == key >> 21 && k >= key ? 0 : -1; });
    Running mine{0, 0};
    for (int i = thread_x(); i < kBins; i += kSearchThreads)
      if ((uint32_t)i > key >> 21) mine.weight += a.weights[i], mine.count += a.counts[i];
    if (thread_x() == 0) mine.weight += fine.weights[0], mine.count += fine.counts[0];
    scan[thread_x()] = mine;
    sync_block();
    for (int half = kSearchThreads / 2; half; half /= 2) {
      if (thread_x() < half)
        scan[thread_x()].weight += scan[thread_x() + half].weight, scan[thread_x()].count += scan[thread_x() + half].count;
      sync_block();
    }
    const Running all = scan[0];
    sync_block();
    return all;
  }

  // The smallest key whose token is at least min_p times as likely as the top one.
  IVLITE_DEVICE uint32_t least_key(uint32_t top) {
    uint32_t low = key_of(-INFINITY), high = top;  // high's is
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2;
      if (by.share(middle) >= a.min_p)
        high = middle;
      else
        low = middle + 1;
    }
    return high;
  }
};

constexpr size_t kSearchBytes = kBins * (sizeof(Weight) + sizeof(int)) + kSearchThreads * sizeof(Running) + sizeof(Found);

IVLITE_KERNEL_OF(kSearchThreads) sample_search(SampleArgs a) {
  Weight* memory = shared_memory<Weight>();
  Running* scan = (Running*)(memory + kBins);
  Found* found = (Found*)(scan + kSearchThreads);
  SampledToken best = best_part(a);
  if (!(value_of(best.key) >= -3.4028235e38f)) best.bad = 1;
  if (best.bad) {
    if (thread_x() == 0) a.result[0] = best;
    return;
  }
  Search search{a, {(double)value_of(best.key), a.temperature}, {memory, (int*)(found + 1)}, scan, found};
  Cut cut = a.top_k && a.top_k < a.vocab ? search.first({(double)a.top_k, false, false}) : Cut{0, 0xFFFFFFFFu, search.everything()};
  if (a.top_p < 1) {
    const Cut likely = search.first({a.top_p * (double)cut.through.weight, true, false});
    if (likely.through.count < cut.through.count) cut = likely;
  }
  if (a.min_p > 0) {
    const uint32_t least = search.least_key(best.key);
    if (least > cut.key) cut = {least, 0xFFFFFFFFu, search.above(least)};
  }
  const double at = a.uniform < kBelowOne ? a.uniform : kBelowOne;  // so that the weight of all is more
  const Cut drawn = search.first({at * (double)cut.through.weight, true, true});
  if (thread_x()) return;
  best.key = drawn.key, best.id = (int32_t)drawn.id;
  a.result[0] = best;
  if (a.seen) a.seen[best.id / 32] |= 1u << best.id % 32;
}

constexpr size_t kBestBytes = kThreads * sizeof(SampledToken);

}  // namespace

Status sample_greedy(const SampleArgs& a, int rows, Stream stream) {
  const Status keyed = launch(sample_keys, {kSampleParts, (unsigned)rows}, kThreads, kBestBytes, stream, a);
  return keyed ? keyed : launch(sample_best, {(unsigned)rows}, kSampleParts, kBestBytes, stream, a);
}

Status sample_draw(const SampleArgs& a, Stream stream) {
  Status status = launch(sample_keys, {kSampleParts, 1}, kThreads, kBestBytes, stream, a);
  if (!status) status = launch(sample_histogram, {kSampleParts}, kThreads, kBins * (sizeof(Weight) + sizeof(int)), stream, a);
  return status ? status : launch(sample_search, {1}, kSearchThreads, kSearchBytes, stream, a);
}

}  // namespace ivlite::cuda
