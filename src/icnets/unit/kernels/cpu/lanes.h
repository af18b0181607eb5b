// The processor's vectors: W numbers side by side, from and to rows of float, double or bfloat16.
//
// Written out, and not left to the compiler's own vectorization, which gives up on a short row of channels.

#pragma once

#include <ATen/core/Tensor.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include <cstring>
#include <type_traits>

namespace icnets {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

// What numbers of type T are computed in, sums among them.
template <typename T>
using Work = std::conditional_t<std::is_same_v<T, at::BFloat16>, float, T>;

template <typename A>
constexpr int kLanes = kBytes / sizeof(A);

template <typename A, int W>
struct LanesOf {
  typedef A type __attribute__((vector_size(W * sizeof(A))));
};
template <typename A>
struct LanesOf<A, 1> {
  using type = A;
};
template <typename A, int W>
using Lanes = typename LanesOf<A, W>::type;

template <int W, typename A>
Lanes<A, W> spread(A a) {
  if constexpr (W == 1) return a;
  else return a - Lanes<A, W>{};
}

template <int W, typename T>
Lanes<Work<T>, W> load(const T* p) {
  if constexpr (W == 1) {
    return *p;
  } else if constexpr (std::is_same_v<T, at::BFloat16>) {
    Lanes<uint16_t, W> upper;
    std::memcpy(&upper, p, sizeof upper);
    return (Lanes<float, W>)(__builtin_convertvector(upper, Lanes<uint32_t, W>) << 16);
  } else {
    Lanes<T, W> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
}

template <int W, typename T>
void store(T* p, const Lanes<Work<T>, W>& v) {
  if constexpr (W == 1) {
    *p = v;
#if defined(__AVX512BF16__)
  } else if constexpr (std::is_same_v<T, at::BFloat16> && W == 16) {  // as below, in one instruction
    const auto upper = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &upper, sizeof upper);
#endif
  } else if constexpr (std::is_same_v<T, at::BFloat16>) {  // to the nearest, ties to even, as torch rounds
    const auto bits = (Lanes<uint32_t, W>)v;
    const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const auto nan = Lanes<uint32_t, W>{} + 0x7fc0;
    const auto upper = __builtin_convertvector(v == v ? rounded : nan, Lanes<uint16_t, W>);
    std::memcpy(p, &upper, sizeof upper);
  } else {
    std::memcpy(p, &v, sizeof v);
  }
}

template <typename A, int W>
A total(const Lanes<A, W>& v) {
  if constexpr (W == 1) {
    return v;
  } else {
    Lanes<A, W / 2> halves[2];
    std::memcpy(halves, &v, sizeof v);
    return total<A, W / 2>(halves[0] + halves[1]);
  }
}

template <typename V>
V relu(V u) { return u <= V{} ? V{} : u; }  // keeps NaN

// A sum of which `add` takes the addends, as many at once as there are.
template <typename A>
struct Sum {
  Lanes<A, kLanes<A>> wide{};
  A rest{};

  template <int W>
  void add(const Lanes<A, W>& v) {
    if constexpr (W == kLanes<A>) wide += v;
    else rest += total<A, W>(v);
  }
  A value() const { return total<A, kLanes<A>>(wide) + rest; }
};

// Calls f<W>(i) for 0 <= i < count: W numbers at a time, at the end half as many, and so on.
template <int W, typename F>
void by_lanes(int64_t i, int64_t count, const F& f) {
  for (; i + W <= count; i += W) f.template operator()<W>(i);
  if constexpr (W > 1) by_lanes<W / 2>(i, count, f);
}

template <typename A, typename F>
void by_lanes(int64_t count, const F& f) { by_lanes<kLanes<A>>(0, count, f); }

}  // namespace icnets
