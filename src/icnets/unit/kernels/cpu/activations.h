// Activations, their channels, and one pass over them.
//
// Activations are (N, C, *L), dense, contiguous or channels last; sums s are (N, groups, *L); vectors (C,).

#pragma once

#include "checks.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <tuple>
#include <vector>

namespace icnets {

constexpr int64_t kGrain = 1 << 14;  // elements below which a second thread costs more than it saves

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

template <typename T>
T relu(T u) { return u <= T(0) ? T(0) : u; }  // keeps NaN

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

// Numbers per channel, side by side: `vectors[i]` times `factors[i]`, or `defaults[i]` where it is absent.
template <typename T>
struct Channels {
  int64_t size;
  std::vector<T> values;

  Channels(int64_t size, std::initializer_list<std::tuple<const Vector*, double, double>> rows) : size(size) {
    values.reserve(rows.size() * size);
    for (const auto& [vector, factor, absent] : rows) {
      if (!vector->has_value()) {
        values.insert(values.end(), size, T(absent));
        continue;
      }
      const Tensor v = (*vector)->to(c10::CppTypeToScalarType<T>::value).contiguous();
      const T* p = v.const_data_ptr<T>();
      for (int64_t c = 0; c < size; c++) values.push_back(T(factor) * p[c]);
    }
  }
  const T* row(int64_t i) const { return values.data() + i * size; }
};

// One pass: z = f(channel)(z, s) everywhere. `f(c)` copies the channel's numbers, which the loops keep in registers.
template <typename T, typename F>
void each(const Tensor& z, const Tensor& sums, const Shape& shape, const F& f) {
  const Tensor rows = shape.sums(sums);
  T* const out = z.mutable_data_ptr<T>();
  const T* const s = rows.const_data_ptr<T>();
  const int64_t channels = shape.channels(), places = shape.places, per_group = shape.per_group;
  if (!shape.channels_last) {
    at::parallel_for(0, shape.batch * channels, ceil_div(kGrain, places), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const auto at = f(row % channels);
        T* __restrict__ o = out + row * places;
        const T* __restrict__ t = s + row / per_group * places;
#pragma omp simd
        for (int64_t l = 0; l < places; l++) o[l] = at(o[l], t[l]);
      }
    });
    return;
  }
  at::parallel_for(0, shape.batch * places, ceil_div(kGrain, channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      T* __restrict__ o = out + row * channels;
      const T* __restrict__ t = s + row * shape.groups;
      if (per_group == 1) {
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) o[c] = f(c)(o[c], t[c]);
        continue;
      }
      for (int64_t g = 0; g < shape.groups; g++) {
        const T sum = t[g];
#pragma omp simd
        for (int64_t c = g * per_group; c < (g + 1) * per_group; c++) o[c] = f(c)(o[c], sum);
      }
    }
  });
}

}  // namespace icnets
