#include "traffic.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "check.h"

namespace ivlite::cuda::emulator {

namespace {

struct Accessed {
  const void* place;
  uintptr_t address;
  int nth;  // of its lane at this place
  uint8_t lane, bytes;
  bool shared, writes;
};

std::vector<Accessed> of_warp[kMostThreads / kLanes];
std::string kernel;
using Key = std::tuple<std::string, const void*, bool, bool, int>;  // kernel, place, shared, writes, bytes
std::map<Key, Traffic> traffic;

// How many different values, less than 32 times the widest access, there are.
int distinct(std::vector<uintptr_t>& values) {
  std::sort(values.begin(), values.end());
  return (int)(std::unique(values.begin(), values.end()) - values.begin());
}

// Passes over the 32 banks of 4 bytes: 8 or 16 bytes per lane are served for 16 or 8 lanes at a time, and each pass gives every
// bank one word.
void count_banks(Traffic& to, const Accessed* begin, const Accessed* end) {
  const int bytes = begin->bytes, together = bytes <= 4 ? 32 : 128 / bytes;
  for (int first = 0; first < kLanes; first += together) {
    std::vector<uintptr_t> words[32];
    bool some = false;
    for (const Accessed* a = begin; a < end; a++) {
      if (a->lane < first || a->lane >= first + together) continue;
      some = true;
      for (uintptr_t word = a->address / 4; word <= (a->address + (uintptr_t)bytes - 1) / 4; word++) words[word % 32].push_back(word);
    }
    int most = 0;
    for (auto& bank : words) most = std::max(most, distinct(bank));
    to.parts += most;
    to.needed += some;
  }
}

void count_sectors(Traffic& to, const Accessed* begin, const Accessed* end) {
  std::vector<uintptr_t> sectors, bytes;
  for (const Accessed* a = begin; a < end; a++)
    for (uintptr_t b = a->address; b < a->address + a->bytes; b++) sectors.push_back(b / 32), bytes.push_back(b);
  to.parts += distinct(sectors);
  to.needed += (distinct(bytes) + 31) / 32;
}

void count_request(const Accessed* begin, const Accessed* end) {
  const Accessed& a = *begin;
  Traffic& to = traffic[{kernel, a.place, a.shared, a.writes, a.bytes}];
  if (!to.requests) to = {kernel, a.place, a.shared ? "shared" : "global", a.writes ? "write" : "read", a.bytes, 0, 0, 0};
  to.requests++;
  (a.shared ? count_banks : count_sectors)(to, begin, end);
}

}  // namespace

void begin_counting(const std::string& name) {
  kernel = name;
  for (auto& accesses : of_warp) accesses.clear();
}

void count_access(int thread, const void* p, size_t n, bool shared, bool writes, const void* place) {
  if (n > 16) return;
  of_warp[thread / kLanes].push_back({place, (uintptr_t)p, 0, (uint8_t)(thread % kLanes), (uint8_t)n, shared, writes});
}

void count_warp(int warp) {
  auto& all = of_warp[warp];
  const auto kind = [](const Accessed& a) { return std::tuple(a.place, a.bytes, a.shared, a.writes); };
  std::stable_sort(all.begin(), all.end(),
                   [&](const Accessed& a, const Accessed& b) { return std::tuple(kind(a), a.lane) < std::tuple(kind(b), b.lane); });
  for (size_t i = 1; i < all.size(); i++)
    if (kind(all[i]) == kind(all[i - 1]) && all[i].lane == all[i - 1].lane) all[i].nth = all[i - 1].nth + 1;
  std::stable_sort(all.begin(), all.end(),
                   [&](const Accessed& a, const Accessed& b) { return std::tuple(kind(a), a.nth) < std::tuple(kind(b), b.nth); });
  for (size_t i = 0, end; i < all.size(); i = end) {
    for (end = i + 1; end < all.size() && kind(all[end]) == kind(all[i]) && all[end].nth == all[i].nth; end++) {
    }
    count_request(all.data() + i, all.data() + end);
  }
  all.clear();
}

void count_all() {
  for (int warp = 0; warp < kMostThreads / kLanes; warp++) count_warp(warp);
}

std::vector<Traffic> take_traffic() {
  std::vector<Traffic> out;
  for (auto& item : traffic) out.push_back(item.second);
  traffic.clear();
  return out;
}

}  // namespace ivlite::cuda::emulator
