// The sum of the inputs in each receptive field.

#pragma once

#include "activations.h"

namespace icnets {

// Sums over each group's channels, in blocks of 64: (N, groups, places), or (N, places, groups) for channels last.
template <typename T>
void channel_sum(const Tensor& x, Work<T>* out, const Shape& shape) {
  using A = Work<T>;
  const T* const in = x.const_data_ptr<T>();
  const int64_t places = shape.places, per_group = shape.per_group;
  if (shape.channels_last) {
    at::parallel_for(0, shape.batch * places * shape.groups, ceil_div(kGrain, per_group), [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; i++) {
        const T* const row = in + i * per_group;
        Sum<A> sum;
        by_lanes<A>(per_group, [&]<int W>(int64_t c) { sum.template add<W>(load<W>(row + c)); });
        out[i] = sum.value();
      }
    });
    return;
  }
  constexpr int64_t kBlock = 256;
  const int64_t blocks = ceil_div(places, kBlock);
  const int64_t grain = ceil_div(kGrain, std::min(places, kBlock) * per_group);
  at::parallel_for(0, shape.batch * shape.groups * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t group = i / blocks, first = i % blocks * kBlock, width = std::min(kBlock, places - first);
      A* const total = out + group * places + first;
      std::fill_n(total, width, A(0));
      const auto add = [&](A* to, const auto* from) {
        by_lanes<A>(width, [&]<int W>(int64_t l) { store<W>(to + l, load<W>(to + l) + load<W>(from + l)); });
      };
      for (int64_t start = 0; start < per_group; start += 64) {
        A part[kBlock] = {};
        for (int64_t c = start; c < std::min(start + 64, per_group); c++)
          add(part, in + (group * per_group + c) * places + first);
        add(total, part);
      }
    }
  });
}

// The places low <= j < high of a result whose input j * stride + shift is one of `size`.
struct Seen {
  int64_t shift, low, high;
  Seen(int64_t shift, int64_t size, int64_t length, int64_t stride)
      : shift(shift), low(shift >= 0 ? 0 : ceil_div(-shift, stride)),
        high(std::min(length, size > shift ? (size - 1 - shift) / stride + 1 : 0)) {}
};

// Sums over windows along one dimension, with zeros around: a window of several dimensions is one after the other.
template <typename T>
Tensor window_sum(const Tensor& t, int64_t dim, const Windows& windows, size_t i) {
  const int64_t window = windows.kernel[i], stride = windows.stride[i], padding = windows.padding[i],
                dilation = windows.dilation[i], size = t.size(dim), length = windows.length[i];
  if (window == 1 && stride == 1 && padding == 0) return t;
  auto sizes = t.sizes().vec();
  sizes[dim] = length;
  Tensor sums = at::empty(sizes, t.options());
  int64_t inner = 1, outer = 1;
  for (int64_t d = 0; d < t.dim(); d++) (d < dim ? outer : inner) *= d == dim ? 1 : t.size(d);
  const T* const in = t.const_data_ptr<T>();
  T* const out = sums.mutable_data_ptr<T>();
  at::parallel_for(0, outer, ceil_div(kGrain, length * inner), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++) {
      const T* const from = in + o * size * inner;
      T* const to = out + o * length * inner;
      std::fill_n(to, length * inner, T(0));
      for (int64_t k = 0; k < window; k++) {
        const Seen seen(k * dilation - padding, size, length, stride);
        if (inner == 1) {
#pragma omp simd
          for (int64_t j = seen.low; j < seen.high; j++) to[j] += from[j * stride + seen.shift];
          continue;
        }
        for (int64_t j = seen.low; j < seen.high; j++) {
          const T* __restrict__ a = from + (j * stride + seen.shift) * inner;
          T* __restrict__ b = to + j * inner;
#pragma omp simd
          for (int64_t i = 0; i < inner; i++) b[i] += a[i];
        }
      }
    }
  });
  return sums;
}

template <typename T>
Tensor field_sum(const Tensor& input, const Windows& windows, int64_t groups) {
  using A = Work<T>;
  const Tensor x = dense(input) ? input : input.contiguous();
  const Shape shape(x, groups);
  const Tensor rows = shape.channels_last ? x.movedim(1, -1) : x;
  const int64_t first = shape.channels_last ? 1 : 2;  // of the dimensions with places
  Tensor total;
  if (shape.per_group == 1) {
    total = rows.to(work_type(x));
  } else {
    auto sizes = rows.sizes().vec();
    sizes[shape.channels_last ? sizes.size() - 1 : 1] = groups;
    total = at::empty(sizes, x.options().dtype(work_type(x)).memory_format(at::MemoryFormat::Contiguous));
    channel_sum<T>(x, total.mutable_data_ptr<A>(), shape);
  }
  for (size_t i = 0; i < windows.nd; i++) total = window_sum<A>(total, first + i, windows, i);
  return shape.channels_last ? total.movedim(-1, 1) : total;
}

// The gradient of window_sum, along one dimension of `size`.
template <typename T>
Tensor window_spread(const Tensor& sums, int64_t dim, int64_t size, const Windows& windows, size_t i) {
  const int64_t window = windows.kernel[i], stride = windows.stride[i], padding = windows.padding[i],
                dilation = windows.dilation[i];
  if (window == 1 && stride == 1 && padding == 0) return sums;
  const int64_t length = sums.size(dim);
  auto sizes = sums.sizes().vec();
  sizes[dim] = size;
  Tensor spread = at::empty(sizes, sums.options());
  int64_t inner = 1, outer = 1;
  for (int64_t d = 0; d < sums.dim(); d++) (d < dim ? outer : inner) *= d == dim ? 1 : sums.size(d);
  const T* const in = sums.const_data_ptr<T>();
  T* const out = spread.mutable_data_ptr<T>();
  at::parallel_for(0, outer, ceil_div(kGrain, size * inner), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++) {
      std::fill_n(out + o * size * inner, size * inner, T(0));
      for (int64_t k = 0; k < window; k++) {
        const Seen seen(k * dilation - padding, size, length, stride);
        for (int64_t j = seen.low; j < seen.high; j++) {
          T* __restrict__ a = out + (o * size + j * stride + seen.shift) * inner;
          const T* __restrict__ b = in + (o * length + j) * inner;
#pragma omp simd
          for (int64_t i = 0; i < inner; i++) a[i] += b[i];
        }
      }
    }
  });
  return spread;
}

Tensor field_sums(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                  int64_t groups) {
  at::AutoDispatchBelowADInplaceOrView guard;
  check_activation("x", x, groups);
  const Windows windows(x.sizes().slice(2), kernel, stride, padding, dilation);
  Tensor s;
  dispatch(x, [&]<typename T>() { s = field_sum<T>(x, windows, groups); });
  return s;
}

// Adds the gradient of field_sums to the gradient dx of its input.
Tensor& add_field_gradient_(Tensor& dx, const Tensor& ds, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                            IntArrayRef dilation) {
  at::AutoDispatchBelowADInplaceOrView guard;
  TORCH_CHECK(ds.dim() >= 3, "icnets: ds has shape ", ds.sizes(), "; it must be (N, groups, *L)");
  check_activation("dx", dx, ds.size(1));
  const Windows windows(dx.sizes().slice(2), kernel, stride, padding, dilation);
  check_sums("ds", ds, "dx", dx, windows.lengths());
  at::assert_no_overlap(dx, ds);
  const Shape shape(dx, ds.size(1));
  dispatch(dx, [&]<typename T>() {
    Tensor total = shape.sums(ds);
    const int64_t first = shape.channels_last ? 1 : 2;
    for (size_t i = 0; i < windows.nd; i++)
      total = window_spread<Work<T>>(total, first + i, dx.size(2 + i), windows, i);
    if (shape.channels_last) total = total.movedim(-1, 1);
    const Channels<Work<T>, 0> none(shape.channels(), {});
    each<T>(dx, total, shape, none, [](auto a, auto b, const auto&) { return a + b; });
  });
  return dx;
}

}  // namespace icnets
