// What the machine is and what it can do: identity, threads, and the probes behind `ivlite bench` and `doctor`.
#include <algorithm>
#include <atomic>
#include <chrono>

#include "bindings.h"
#include "core/memory.h"
#include "core/stop.h"
#include "core/threads.h"
#include "kernels/cpu_info.h"
#include "kernels/dispatch.h"

namespace ivlite {
namespace {

py::dict cpu() {
  const CpuInfo& c = cpu_info();
  py::dict out;
  out["name"] = c.name;
  out["avx2"] = c.avx2, out["fma"] = c.fma, out["f16c"] = c.f16c, out["avx512f"] = c.avx512f, out["avx512bw"] = c.avx512bw;
  out["avx512dq"] = c.avx512dq, out["avx512vl"] = c.avx512vl, out["avx512vnni"] = c.avx512vnni, out["avxvnni"] = c.avxvnni,
  out["amx"] = c.amx;
  out["dotprod"] = c.dotprod, out["fp16"] = c.fp16, out["i8mm"] = c.i8mm;
  return out;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Runs work(thread) on every thread once; returns the seconds until all are done.
template <class F>
double on_all_threads(int threads, F work) {
  auto start = std::chrono::steady_clock::now();
  parallel_for((int64_t)threads * 4, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) work(i);
  });
  return seconds_since(start);
}

// Operations per second (a multiply and an add are two), the best of runs that take `seconds` together; 0 without a kernel.
double probe_peak(uint64_t (*kernel)(int64_t), double seconds) {
  if (!kernel) return 0;
  int threads = num_threads();
  int64_t iterations = 1 << 12;
  double best = 0, spent = 0;
  while (spent < seconds) {
    std::atomic<uint64_t> macs{0};
    double took = on_all_threads(threads, [&](int64_t) { macs += kernel(iterations); });
    if (took < 0.02)
      iterations *= 2;
    else
      best = std::max(best, 2.0 * (double)macs.load() / took);
    spent += took;
  }
  return best;
}

// Bytes per second of reading `bytes` of huge-page memory that no cache holds, the best of `repeats` in either way of reading.
double probe_read_bandwidth(int64_t bytes, int repeats) {
  check(bytes >= 1 << 20 && repeats > 0 && repeats < 1 << 20, "the probe needs a mebibyte at least, and one repeat");
  HugeBuffer memory((size_t)bytes);
  int64_t piece = 1 << 20, pieces = bytes / piece;
  char* base = (char*)memory.data();
  parallel_for(pieces, 1, [&](int64_t b, int64_t e) { std::fill(base + b * piece, base + e * piece, (char)b); });
  double best = 0;
  std::atomic<int64_t> sink{0};
  for (int i = 0; i < 2 * repeats; i++) {
    parallel_for(pieces, 1, [&](int64_t b, int64_t e) { evict(base + b * piece, (size_t)((e - b) * piece)); });
    auto start = std::chrono::steady_clock::now();
    parallel_for(pieces, 1,
                 [&](int64_t b, int64_t e) { sink += (int64_t)kernels().read_streams[i % 2](base + b * piece, (e - b) * piece); });
    best = std::max(best, (double)(pieces * piece) / seconds_since(start));
  }
  return best;
}

}  // namespace

void bind_machine(py::module_& m) {
  hold(m, "isa", isa_name, "The instruction set in use.");
  hold(
      m, "isas",
      [] {
        std::vector<std::string> out;
        for (const std::string& name : known_isas())
          if (isa_supported(name)) out.push_back(name);
        return out;
      },
      "The instruction sets this machine can run, weak to strong.");
  hold(m, "cpu_info", cpu, "Name and features of the processor.");
  compute(
      m, "probe_int8_peak", +[](double seconds) { return probe_peak(kernels().int8_peak, seconds); }, py::arg("seconds") = 0.3,
      "int8 operations per second of the kernels' instructions, in registers.");
  compute(
      m, "probe_matrix_peak", +[](double seconds) { return probe_peak(kernels().matrix_peak, seconds); }, py::arg("seconds") = 0.3,
      "Operations per second of bytes of the matrix unit that the kernels use, in registers; 0 without one.");
  compute(m, "probe_read_bandwidth", probe_read_bandwidth, py::arg("bytes") = (int64_t)256 << 20, py::arg("repeats") = 5,
          "Bytes per second read.");
}

}  // namespace ivlite
