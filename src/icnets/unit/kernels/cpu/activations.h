// Activations, their channels, and one pass over them.
//
// Activations are (N, C, *L), dense, contiguous or channels last; sums s are (N, groups, *L), in single precision for
// half; vectors (C,).

#pragma once

#include "checks.h"
#include "lanes.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

namespace icnets {

constexpr int64_t kGrain = 1 << 14;  // elements below which a second thread costs more than it saves

// Calls f<T>() for the type T of t.
template <typename F>
void dispatch(const Tensor& t, const F& f) {
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, t.scalar_type(), "icnets", [&] { f.template operator()<scalar_t>(); });
}

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// How an activation lies in memory.
struct Shape {
  int64_t batch, groups, per_group, places;
  bool channels_last;

  Shape(const Tensor& y, int64_t groups)  // of what check_activation passes
      : batch(y.size(0)), groups(groups), per_group(y.size(1) / groups), places(y.numel() / (y.size(0) * y.size(1))),
        channels_last(!y.is_contiguous()) {
    TORCH_CHECK(!channels_last || y.movedim(1, -1).is_contiguous(), "icnets: an activation must be dense");
  }
  int64_t channels() const { return groups * per_group; }

  // The sums as (N, groups, places), or channels last as (N, places, groups).
  Tensor sums(const Tensor& s) const { return (channels_last ? s.movedim(1, -1) : s).contiguous(); }
};

bool dense(const Tensor& y) { return y.is_contiguous() || y.movedim(1, -1).is_contiguous(); }

// Numbers of each channel: `vectors[i]` times `factors[i]`, or `defaults[i]` where it is absent.
template <typename A, size_t N>
struct Channels {
  int64_t size;
  std::vector<A> values;

  Channels(int64_t size, const std::array<std::tuple<const Vector*, double, double>, N>& rows) : size(size) {
    values.reserve(N * size);
    for (const auto& [vector, factor, absent] : rows) {
      if (!vector->has_value()) {
        values.insert(values.end(), size, A(absent));
        continue;
      }
      const Tensor v = (*vector)->to(c10::CppTypeToScalarType<A>::value).contiguous();
      const A* p = v.const_data_ptr<A>();
      for (int64_t c = 0; c < size; c++) values.push_back(A(factor) * p[c]);
    }
  }
  const A* row(size_t i) const { return values.data() + i * size; }

  // Of W channels from c on.
  template <int W>
  std::array<Lanes<A, W>, N> at(int64_t c) const {
    std::array<Lanes<A, W>, N> found;
    for (size_t i = 0; i < N; i++) found[i] = load<W>(row(i) + c);
    return found;
  }
};

template <int W, typename A, size_t N>
std::array<Lanes<A, W>, N> spread_all(const std::array<A, N>& numbers) {
  std::array<Lanes<A, W>, N> found;
  for (size_t i = 0; i < N; i++) found[i] = spread<W>(numbers[i]);
  return found;
}

// factor * collision, offset and gain.
template <typename T>
Channels<Work<T>, 3> unit_numbers(const Shape& shape, const Tensor& collision, double factor, const Vector& offset,
                                  const Vector& gain) {
  const Vector w = collision;
  return {shape.channels(), {{{&w, factor, 0}, {&offset, 1, 0}, {&gain, 1, 1}}}};
}

// Places of one tile, channels last: few enough to lie in the nearest cache, many enough to load a channel's numbers
// once for many of them.
constexpr int64_t kTile = 64;

int64_t tile(int64_t channels) { return std::clamp<int64_t>(4096 / channels, 4, kTile); }

// One pass: z = op(z, s, numbers of the channel) everywhere.
template <typename T, size_t N, typename F>
void each(const Tensor& z, const Tensor& sums, const Shape& shape, const Channels<Work<T>, N>& numbers, const F& op) {
  using A = Work<T>;
  const Tensor rows = shape.sums(sums);
  T* const out = z.mutable_data_ptr<T>();
  const A* const s = rows.const_data_ptr<A>();
  const int64_t channels = shape.channels(), places = shape.places, per_group = shape.per_group;
  if (!shape.channels_last) {
    at::parallel_for(0, shape.batch * channels, ceil_div(kGrain, places), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const auto own = numbers.template at<1>(row % channels);
        T* const o = out + row * places;
        const A* const t = s + row / per_group * places;
        by_lanes<A>(places, [&]<int W>(int64_t l) {
          store<W>(o + l, op(load<W>(o + l), load<W>(t + l), spread_all<W>(own)));
        });
      }
    });
    return;
  }
  const int64_t all = shape.batch * places, step = tile(channels);
  at::parallel_for(0, ceil_div(all, step), ceil_div(kGrain, channels * step), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * step; first < std::min(end * step, all); first += step) {
      const int64_t last = std::min(first + step, all);
      const auto sweep = [&]<bool kDepthwise>(int64_t start, int64_t count, const A* t) {
        by_lanes<A>(count, [&]<int W>(int64_t i) {
          const auto own = numbers.template at<W>(start + i);
          for (int64_t row = first; row < last; row++) {
            T* const o = out + row * channels + start + i;
            if constexpr (kDepthwise) store<W>(o, op(load<W>(o), load<W>(t + row * channels + i), own));
            else store<W>(o, op(load<W>(o), spread<W>(t[row * shape.groups]), own));
          }
        });
      };
      if (per_group == 1) sweep.template operator()<true>(0, channels, s);
      for (int64_t g = 0; per_group > 1 && g < shape.groups; g++)
        sweep.template operator()<false>(g * per_group, per_group, s + g);
    }
  });
}

}  // namespace icnets
