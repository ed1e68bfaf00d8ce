// What the comparison of kernels shares: inputs that end at a page nobody may read, outputs between guard values, and
// the count of what differed.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "kernels/table.h"

namespace ivlite {

// n elements that end where a page ends, and the next page is forbidden: a kernel that reads on is killed.
template <class T>
class AtEdge {
 public:
  explicit AtEdge(int64_t n, T value = T()) : n_(n) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (size_t)n * sizeof(T), pages = (bytes + page - 1) / page;
    size_ = (pages + 1) * page;
    base_ = (char*)mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED || mprotect(base_ + pages * page, page, PROT_NONE)) abort();
    data_ = (T*)(base_ + pages * page - bytes);
    for (int64_t i = 0; i < n; i++) data_[i] = value;
  }
  ~AtEdge() { munmap(base_, size_); }
  AtEdge(const AtEdge&) = delete;
  AtEdge& operator=(const AtEdge&) = delete;
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return n_; }

 private:
  char* base_;
  size_t size_;
  T* data_;
  int64_t n_;
};

inline std::mt19937& rng() {
  static std::mt19937 generator(20261124);
  return generator;
}
class Normal : public AtEdge<float> {
 public:
  explicit Normal(int64_t n, float scale = 1) : AtEdge(n) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < n; i++) (*this)[i] = scale * normal(rng());
  }
};

struct Tables {
  KernelTable plain, fast;
};

inline std::string text(std::initializer_list<std::pair<const char*, int64_t>> sizes) {
  std::string out;
  for (const auto& [name, value] : sizes) out += (out.empty() ? "" : ", ") + std::to_string(value) + " " + name;
  return out;
}

struct Close {
  double relative, absolute;
};
constexpr Close kEqual{0, 0};
struct Rounding {
  double rms, most;
};
constexpr Rounding kExact{0, 0};

// One line of the report: how many results of a kernel were compared, and the largest error as a part of the tolerance.
struct Report {
  std::string isa, kernel;
  int64_t cases = 0, bad = 0;
  double worst = 0;

  void expect(bool ok, const std::string& what) {
    cases++;
    if (ok) return;
    if (bad++ < 3) printf("  %s %s: %s\n", isa.c_str(), kernel.c_str(), what.c_str());
  }

  void near(const float* got, const float* expected, int64_t n, Close close, const std::string& what) {
    for (int64_t i = 0; i < n; i++) {
      if (got[i] == expected[i]) continue;
      const double error = fabs((double)got[i] - expected[i]) / (close.absolute + close.relative * fabs((double)expected[i]));
      if (error > worst) worst = error;
      if (!(error <= 1))
        return expect(false,
                      what + ", element " + std::to_string(i) + ": " + std::to_string(got[i]) + ", not " + std::to_string(expected[i]));
    }
    expect(true, what);
  }

  // For kernels that quantize what they multiply: the error's root mean square and its maximum, over the rms of what is expected.
  void near_rms(const float* got, const float* expected, int64_t n, Rounding limit, const std::string& what) {
    double square = 0, error = 0, most = 0;
    for (int64_t i = 0; i < n; i++) {
      const double d = (double)got[i] - expected[i];
      square += (double)expected[i] * expected[i], error += d * d;
      if (!(fabs(d) <= most)) most = fabs(d);
    }
    const double rms = sqrt(square / (double)n), relative = sqrt(error / (double)n) / rms / limit.rms, largest = most / rms / limit.most;
    if (error > 0) worst = std::max({worst, relative, largest});
    expect(error == 0 || (relative <= 1 && largest <= 1), what + ": off by " + std::to_string(most / rms) + " of the rms");
  }
};

constexpr float kGuard = -12345.5f;

// Rows of an output with guard values around and between them.
struct Guarded {
  int64_t rows, cols, stride;
  std::vector<float> memory;
  Guarded(int64_t rows, int64_t cols, int64_t margin, float fill)
      : rows(rows), cols(cols), stride(cols + margin), memory((size_t)(128 + rows * stride), kGuard) {
    for (int64_t i = 0; i < rows; i++) std::fill_n(data() + i * stride, cols, fill);
  }
  float* data() { return memory.data() + 64; }
  std::vector<float> take() {  // the rows without their margins; the guards are left
    std::vector<float> out;
    for (int64_t i = 0; i < rows; i++) {
      out.insert(out.end(), data() + i * stride, data() + i * stride + cols);
      std::fill_n(data() + i * stride, cols, kGuard);
    }
    return out;
  }
  bool intact() const {
    for (float x : memory)
      if (x != kGuard) return false;
    return true;
  }
};

// call(table, y, ldy) with both tables, and whether they wrote the same (rows, cols).
template <class Call>
void compare(Report& r, const KernelTable& plain, const KernelTable& fast, int64_t rows, int64_t cols, int64_t margin, Close close,
             const std::string& what, Call call, float fill = NAN, Rounding rounding = kExact) {
  Guarded got(rows, cols, margin, fill), expected(rows, cols, margin, fill);
  call(fast, got.data(), got.stride);
  call(plain, expected.data(), expected.stride);
  const std::vector<float> a = got.take(), b = expected.take();
  if (rounding.most > 0)
    r.near_rms(a.data(), b.data(), rows * cols, rounding, what);
  else
    r.near(a.data(), b.data(), rows * cols, close, what);
  r.expect(got.intact(), what + ": wrote outside its output");
}

}  // namespace ivlite
