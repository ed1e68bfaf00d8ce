// What the machine is and what it can do: identity, threads, and the probes behind `ivlite bench` and `doctor`.
#include <algorithm>
#include <atomic>
#include <chrono>

#include "bindings.h"
#include "core/memory.h"
#include "core/threads.h"
#include "kernels/cpu_info.h"
#include "kernels/cuda/cuda.h"
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
  py::gil_scoped_release release;
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
  need(bytes >= 1 << 20 && repeats > 0, "the probe needs a mebibyte at least, and one repeat");
  py::gil_scoped_release release;
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

// Lets Ctrl-C end a long kernel: Python's handler runs between two pieces of the calling thread, a few times a second.
void check_signals() {
  thread_local std::chrono::steady_clock::time_point last;
  auto now = std::chrono::steady_clock::now();
  if (now - last < std::chrono::milliseconds(50)) return;
  last = now;
  py::gil_scoped_acquire hold;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

void bind_machine(py::module_& m) {
  between_pieces = check_signals;
  m.def("isa", isa_name, "The instruction set in use.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> out;
        for (const std::string& name : known_isas())
          if (isa_supported(name)) out.push_back(name);
        return out;
      },
      "The instruction sets this machine can run, weak to strong.");
  m.def("cpu_info", cpu, "Name and features of the processor.");
  m.def("num_threads", num_threads);
  m.def("set_num_threads", set_num_threads, py::call_guard<py::gil_scoped_release>());
  m.def("default_threads", default_threads, "One per physical core that this process may use.");
  m.def(
      "probe_int8_peak", [](double seconds) { return probe_peak(kernels().int8_peak, seconds); }, py::arg("seconds") = 0.3,
      "int8 operations per second of the kernels' instructions, in registers.");
  m.def(
      "probe_matrix_peak", [](double seconds) { return probe_peak(kernels().matrix_peak, seconds); }, py::arg("seconds") = 0.3,
      "Operations per second of bytes of the matrix unit that the kernels use, in registers; 0 without one.");
  m.def("cpu_quota", cpu_quota, py::arg("listing") = "/proc/self/cgroup", py::arg("mount") = "/sys/fs/cgroup",
        "Processors that the control groups of this process are paid for; infinity without a limit.");
  m.def("probe_read_bandwidth", probe_read_bandwidth, py::arg("bytes") = (int64_t)256 << 20, py::arg("repeats") = 5,
        "Bytes per second read.");
  m.def("cuda_available", cuda_available, "Whether this build has CUDA kernels and the machine a GPU for them.");
}

}  // namespace ivlite
