// Every access of a kernel: it lies inside memory of the card, is aligned to its size, and races with no other (shadow.h). The
// kernels are compiled for ThreadSanitizer, whose functions, at the end, come here; its library is not linked.
#include "check.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "shadow.h"
#include "traffic.h"

namespace ivlite::cuda::emulator {

bool counting = false;

namespace {

struct Memory {
  const char* begin;
  size_t bytes;
  std::unique_ptr<Shadow> shadow;
};

// One launch runs at a time, in one thread.
std::mutex state_mutex;
std::map<const char*, Memory> memories;  // by where they end
Memory* last = nullptr;
Shadow shared_shadow(kMostShared);
bool under_way[kMostShared];  // copies that have begun and not landed
const char* shared_begin = nullptr;
size_t shared_size = 0;

uint64_t time_now = 1;
Stamp launch_began, block_began, barrier_passed, warp_met[kMostThreads / kLanes];
Unwritten unwritten;
std::map<const int32_t*, Intervals> arrived;  // of blocks at a counter: from their beginning to their coming
Intervals over;                               // what the block has seen the end of

Memory* find(const char* p, size_t n) {
  const auto holds = [&](const Memory& m) { return p >= m.begin && p + n <= m.begin + m.bytes; };
  if (last && holds(*last)) return last;
  const auto found = memories.upper_bound(p);
  if (found == memories.end() || !holds(found->second)) return nullptr;
  return last = &found->second;
}

// Constants of this module, and tables of the vocabulary.
bool is_constant(const char* p, size_t n) {
  struct Search {
    const char *p, *end;
    bool found;
  } search{p, p + n, false};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto* s = (Search*)data;
        for (int i = 0; i < info->dlpi_phnum; i++) {
          const auto& h = info->dlpi_phdr[i];
          const char* begin = (const char*)info->dlpi_addr + h.p_vaddr;
          const bool relro = h.p_type == PT_GNU_RELRO, text = h.p_type == PT_LOAD && !(h.p_flags & PF_W);
          if ((relro || text) && s->p >= begin && s->end <= begin + h.p_memsz) s->found = true;
        }
        return 0;
      },
      &search);
  return search.found;
}

const char* verb(Access access) { return access == Access::read ? "reads " : access == Access::write ? "writes " : "adds to "; }

std::string described(int thread, const char* p, size_t n, Access access, const void* place) {
  const bool other = thread != emulator::thread();
  const std::string source = source_of(place);
  return (other ? "its lane " + std::to_string(thread % kLanes) + " " : "") + verb(access) + std::to_string(n) + " bytes" +
         (p >= shared_begin && p < shared_begin + shared_size ? " of shared memory at " + std::to_string(p - shared_begin) : "") +
         (source.empty() ? "" : " (" + source + ")");
}

// Where an address outside of all memory lies.
std::string outside(const char* p) {
  if (p >= shared_begin && p < shared_begin + kMostShared) return "beyond the " + std::to_string(shared_size) + " of the launch";
  const auto after = memories.upper_bound(p);
  const Memory* nearest = nullptr;
  if (after != memories.end()) nearest = &after->second;
  if (after != memories.begin()) {
    const Memory& before = std::prev(after)->second;
    if (!nearest || p - (before.begin + before.bytes) < nearest->begin - p) nearest = &before;
  }
  if (!nearest) return "outside of all memory of the card";
  const std::string of = " a buffer of " + std::to_string(nearest->bytes) + " bytes";
  if (p < nearest->begin) return std::to_string(nearest->begin - p) + " bytes before" + of;
  return std::to_string(p - nearest->begin) + " bytes after the beginning of" + of;
}

std::string raced(Stamp then) {
  const int thread = (int)(then & 1023);
  if (then < block_began) return "while another block of the launch, thread " + std::to_string(thread) + ", may touch them";
  return "while thread " + std::to_string(thread) + " may touch them: no barrier lies between";
}

void check(int thread, const char* p, size_t n, Access access, const void* place) {
  const auto bad = [&](const std::string& why) { fail(described(thread, p, n, access, place) + ", " + why); };
  const bool in_shared = p >= shared_begin && p + n <= shared_begin + shared_size;
  Memory* memory = in_shared ? nullptr : find(p, n);
  if (!in_shared && !memory) {
    if (on_stack(p) || (access == Access::read && is_constant(p, n))) return;
    bad(outside(p));
  }
  if (n <= 16 && (uintptr_t)p % (n & ~(n - 1))) bad("which is not aligned to their size");  // of 12 bytes: to 4
  const Stamp mine = time_stamp(time_now) | (Stamp)thread;
  // Shared memory belongs to a block: what another one did to it is over.
  const Now now{
      mine, in_shared ? block_began : launch_began, block_began, barrier_passed, warp_met[thread / kLanes], in_shared ? nullptr : &over};
  Shadow& shadow = in_shared ? shared_shadow : *memory->shadow;
  const size_t at = (size_t)(p - (in_shared ? shared_begin : memory->begin));
  if (in_shared) {
    for (size_t i = at; i < at + n; i++)
      if (under_way[i]) bad("into which an asynchronous copy is under way");
    if (access == Access::read && shadow.unwritten(at, n, block_began) && unwritten.reads++ == 0)
      unwritten.first = described(thread, p, n, access, place);
  }
  const Stamp other = access == Access::read ? shadow.read(at, n, now) : shadow.write(at, n, now, access == Access::atomic);
  if (other) bad(raced(other));
  if (counting) count_access(thread, p, n, in_shared, access != Access::read, place);
}

}  // namespace

int most_processors() { return 1; }

void begin_launch(const Launch& launch) {
  state_mutex.lock();
  launch_began = time_stamp(++time_now);
  arrived.clear();
  begin_counting(launch.kernel);
}

void end_launch() { state_mutex.unlock(); }

void begin_block(const Launch& launch, const void* shared) {
  shared_begin = (const char*)shared, shared_size = launch.shared_bytes;
  block_began = barrier_passed = time_stamp(++time_now);
  for (Stamp& met : warp_met) met = block_began;
  memset(under_way, 0, shared_size);
  over.clear();
}

void end_block() { count_all(); }

void pass_barrier() {
  barrier_passed = time_stamp(++time_now);
  for (Stamp& met : warp_met) met = barrier_passed;
  count_all();
}

void arrive(const int32_t* counter) {
  const bool counts = counting;
  counting = false;
  check(thread(), (const char*)counter, 4, Access::atomic, nullptr);
  counting = counts;
  arrived[counter].push_back({block_began, time_stamp(++time_now)});
}
void acquire(const int32_t* counter) { over.insert(over.end(), arrived[counter].begin(), arrived[counter].end()); }

void pass_warp() { warp_met[thread() / kLanes] = time_stamp(++time_now); }

void meet_warp(int warp) {
  if (counting) count_warp(warp);
}

void check_access(const void* p, size_t n, Access access, const void* place) {
  if (running()) check(thread(), (const char*)p, n, access, place);
}

void check_lane(int lane, const void* p, size_t n, Access access, const void* place) {
  check(thread() / kLanes * kLanes + lane, (const char*)p, n, access, place);
}

void begin_copy(const void* to, const void* from, bool valid, const void* place) {
  if (valid) check(thread(), (const char*)from, 16, Access::read, place);
  const char* const p = (const char*)to;
  if (p < shared_begin || p + 16 > shared_begin + shared_size) fail("copy_async16 copies to shared memory, not " + outside(p));
  check(thread(), p, 16, Access::write, place);
  memset(under_way + (p - shared_begin), 1, 16);
}

void end_copy(const void* to) {
  memset(under_way + ((const char*)to - shared_begin), 0, 16);
  const bool counts = counting;
  counting = false;
  check(thread(), (const char*)to, 16, Access::write, nullptr);
  counting = counts;
}

void register_memory(const void* memory, size_t bytes) {
  const std::lock_guard<std::mutex> lock(state_mutex);
  const char* begin = (const char*)memory;
  memories[begin + bytes] = Memory{begin, bytes, std::make_unique<Shadow>(bytes)};
  last = nullptr;
}

void forget_memory(const void* memory) {
  const std::lock_guard<std::mutex> lock(state_mutex);
  last = nullptr;
  for (auto i = memories.begin(); i != memories.end(); ++i)
    if (i->second.begin == memory) {
      memories.erase(i);
      return;
    }
}

Unwritten take_unwritten() {
  const std::lock_guard<std::mutex> lock(state_mutex);
  return std::exchange(unwritten, {});
}

std::string source_of(const void* place) {
  Dl_info info;
  if (!place || !dladdr(place, &info) || !info.dli_fname) return "";
  const size_t at = (size_t)((const char*)place - (const char*)info.dli_fbase) - 1;
  char command[4096], line[1024];
  snprintf(command, sizeof(command), "addr2line -i -e '%s' %#zx 2>/dev/null", info.dli_fname, at);
  std::string found;
  FILE* out = popen(command, "r");
  while (out && fgets(line, sizeof(line), out)) {  // the innermost function comes first
    line[strcspn(line, "\n ")] = 0;
    const char* name = strrchr(line, '/');
    found = name ? name + 1 : line;
    if (found.compare(0, 12, "intrinsics.h") != 0) break;
  }
  if (out) pclose(out);
  return found;
}

}  // namespace ivlite::cuda::emulator

using ivlite::cuda::emulator::Access;
using ivlite::cuda::emulator::check_access;

#define IVLITE_HOOKS(n)                                                                                     \
  void __tsan_read##n(void* p) { check_access(p, n, Access::read, __builtin_return_address(0)); }           \
  void __tsan_write##n(void* p) { check_access(p, n, Access::write, __builtin_return_address(0)); }         \
  void __tsan_unaligned_read##n(void* p) { check_access(p, n, Access::read, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##n(void* p) { check_access(p, n, Access::write, __builtin_return_address(0)); }

extern "C" {
IVLITE_HOOKS(1)
IVLITE_HOOKS(2)
IVLITE_HOOKS(4)
IVLITE_HOOKS(8)
IVLITE_HOOKS(16)
void __tsan_read_range(void* p, size_t n) { check_access(p, n, Access::read, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { check_access(p, n, Access::write, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
