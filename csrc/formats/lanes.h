// Eight floats side by side, in the compiler's vectors: any machine computes the same bits, so encoders that use them
// write the same bytes everywhere.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace ivlite {
namespace {

typedef float Four __attribute__((vector_size(16)));  // a register of every x86-64 and arm64
typedef int32_t FourMask __attribute__((vector_size(16)));

struct Mask {
  FourMask a, b;
};

struct Lanes {
  Four a{}, b{};
  Lanes() = default;
  Lanes(Four a, Four b) : a(a), b(b) {}
  Lanes(float x) : a(Four{} + x), b(Four{} + x) {}
  float operator[](int k) const { return k < 4 ? a[k] : b[k - 4]; }
  // Written as two statements: GCC 12 with sanitizers assigns to a copy where the vector is the result of `?:`.
  void set(int k, float x) {
    if (k < 4)
      a[k] = x;
    else
      b[k - 4] = x;
  }
};
inline Lanes operator+(const Lanes& x, const Lanes& y) { return {x.a + y.a, x.b + y.b}; }
inline Lanes operator-(const Lanes& x, const Lanes& y) { return {x.a - y.a, x.b - y.b}; }
inline Lanes operator*(const Lanes& x, const Lanes& y) { return {x.a * y.a, x.b * y.b}; }
inline Lanes operator/(const Lanes& x, const Lanes& y) { return {x.a / y.a, x.b / y.b}; }
inline void operator+=(Lanes& x, const Lanes& y) { x = x + y; }
inline Mask operator<(const Lanes& x, const Lanes& y) { return {x.a < y.a, x.b < y.b}; }
inline Lanes pick(const Mask& m, const Lanes& x, const Lanes& y) { return {m.a ? x.a : y.a, m.b ? x.b : y.b}; }
#ifdef __SSE__  // the compiler makes four instructions of what these do in one
inline Four least(Four x, Four y) { return (Four)_mm_min_ps((__m128)x, (__m128)y); }
inline Four most(Four x, Four y) { return (Four)_mm_max_ps((__m128)x, (__m128)y); }
#else
inline Four least(Four x, Four y) { return x < y ? x : y; }
inline Four most(Four x, Four y) { return x > y ? x : y; }
#endif
inline Lanes least(const Lanes& x, const Lanes& y) { return {least(x.a, y.a), least(x.b, y.b)}; }
inline Lanes most(const Lanes& x, const Lanes& y) { return {most(x.a, y.a), most(x.b, y.b)}; }
inline Lanes size(const Lanes& x) { return most(x, Lanes() - x); }
inline Lanes between(const Lanes& x, float low, float high) { return least(most(x, low), high); }
// To the nearest whole number, ties to even; |x| < 2^22.
inline Lanes whole(const Lanes& x) { return x + 12582912.0f - 12582912.0f; }
// x / y, and 0 where y is 0.
inline Lanes ratio(const Lanes& x, const Lanes& y) {
  const Mask any = Lanes() < size(y);
  return pick(any, x / pick(any, y, 1), 0);
}

// The next 32 weights, and their largest magnitude.
struct Row32 {
  Lanes x[4];
  float peak;
};
inline Row32 row32(const float* x) {
  Four four[8];
  memcpy(four, x, sizeof(four));
  Row32 r{{{four[0], four[1]}, {four[2], four[3]}, {four[4], four[5]}, {four[6], four[7]}}, 0};
  const Lanes m = most(most(size(r.x[0]), size(r.x[1])), most(size(r.x[2]), size(r.x[3])));
  const Four top = most(m.a, m.b);
  r.peak = fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
  return r;
}

}  // namespace
}  // namespace ivlite
