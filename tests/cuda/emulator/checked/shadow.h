// Who touched each byte of some memory last.
//
// A stamp is a time and a thread. Time goes on at every barrier, of a block or of a warp, and at every block. Of two accesses to a
// byte, one of them writing, by two threads of a launch, the first is over for the second if a barrier of the block lies between
// them, or one of the warp that both belong to. Otherwise they race; so do those of two blocks, unless one did its own before it came to a
// counter at which the other was the last.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include <new>
#include <utility>
#include <vector>

namespace ivlite::cuda::emulator {

using Stamp = uint64_t;
constexpr int kThreadBits = 11;  // a thread, and whether the access was atomic
constexpr Stamp kAtomic = 1024;

using Intervals = std::vector<std::pair<Stamp, Stamp>>;  // of times: from the first to before the second

// The access that is checked: its stamp, and the times that decide.
struct Now {
  Stamp mine;
  Stamp launch, block;      // when they began
  Stamp barrier, warp_met;  // the last of the block, and of the warp
  const Intervals* over;    // when other blocks did what this one knows to be over; or null
};

inline Stamp time_stamp(uint64_t time) { return time << kThreadBits; }

// Whether what `then` stands for may be under way at the same time as the access of `now`.
inline bool races(Stamp then, const Now& now) {
  const bool same_thread = ((then ^ now.mine) & 1023) == 0, same_warp = ((then ^ now.mine) & 1023 & ~(Stamp)31) == 0;
  const bool other_block = (then >= now.launch) & (then < now.block);
  const bool other_warp = (then >= now.barrier) & !same_warp;
  const bool other_lane = (then >= now.warp_met) & same_warp & !same_thread;
  if (other_block && now.over)
    for (const auto& [from, to] : *now.over)
      if (then >= from && then < to) return false;
  return other_block | other_warp | other_lane;
}

class Shadow {
 public:
  explicit Shadow(size_t bytes) : bytes_(bytes), stamps_(map(bytes)) {}
  ~Shadow() { munmap(stamps_, size()); }
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  Stamp* writers() { return stamps_; }
  Stamp* readers() { return stamps_ + bytes_; }     // one,
  Stamp* others() { return stamps_ + 2 * bytes_; }  // and another if there were several

  // The stamp of an access that races with reading bytes [at, at + n), or 0; notes the reading.
  Stamp read(size_t at, size_t n, const Now& now) {
    Stamp* const w = writers() + at;
    Stamp* const r = readers() + at;
    Stamp* const o = others() + at;
    bool bad = false;
    for (size_t i = 0; i < n; i++) {
      bad |= races(w[i], now);
      const bool keep = races(r[i], now);  // two threads have read the byte since
      o[i] = keep ? now.mine : o[i];
      r[i] = keep ? r[i] : now.mine;
    }
    return bad ? first_race(w, n, now) : 0;
  }

  Stamp write(size_t at, size_t n, const Now& now, bool atomic) {
    Stamp* const w = writers() + at;
    Stamp* const r = readers() + at;
    Stamp* const o = others() + at;
    bool bad = false;
    for (size_t i = 0; i < n; i++) {
      bad |= (races(w[i], now) & !(atomic & ((w[i] & kAtomic) != 0))) | races(r[i], now) | races(o[i], now);
      if (!bad) w[i] = now.mine | (atomic ? kAtomic : 0);
    }
    if (!bad) return 0;
    for (Stamp* stamps : {w, r, o})
      if (const Stamp found = first_race(stamps, n, now)) return found;
    return 0;
  }

  // Whether some of the bytes were not written since `since`.
  bool unwritten(size_t at, size_t n, Stamp since) {
    bool found = false;
    for (size_t i = at; i < at + n; i++) found |= writers()[i] < since;
    return found;
  }

 private:
  size_t size() const { return 3 * bytes_ * sizeof(Stamp) + 1; }
  static Stamp* map(size_t bytes) {  // pages come as they are used
    void* memory = mmap(nullptr, 3 * bytes * sizeof(Stamp) + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return (Stamp*)memory;
  }
  static Stamp first_race(const Stamp* stamps, size_t n, const Now& now) {
    for (size_t i = 0; i < n; i++)
      if (races(stamps[i], now)) return stamps[i];
    return 0;
  }

  size_t bytes_;
  Stamp* stamps_;
};

}  // namespace ivlite::cuda::emulator
