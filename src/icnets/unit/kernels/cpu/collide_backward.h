// Gradients of collide_ from its result z, or from y with z_is_y: of y, s, collision, offset and gain.

#pragma once

#include "activations.h"

namespace icnets {

// One item's share of the channels' sums, (C,) each: of m * s, of m, and of t where it is positive times dz.
template <typename T>
struct Partial {
  T *by_sum, *plain, *by_branch;
};

template <typename T>
struct Backward {
  const T *dz, *z, *s;
  T *dy, *ds;
  const T *k, *o, *g;  // factor * collision, offset, gain
  bool with_gain;

  // One row of `count` places of channel c; `ds` is added to.
  void row(int64_t at, int64_t s_at, int64_t count, int64_t c, const Partial<T>& sums) const {
    const T *__restrict__ dz_ = dz + at, *__restrict__ z_ = z + at, *__restrict__ s_ = s + s_at;
    T *__restrict__ dy_ = dy + at, *__restrict__ ds_ = ds + s_at;
    const T k_ = k[c], o_ = o[c], g_ = g[c], kg = -k_ * g_;
    T by_sum = 0, plain = 0, by_branch = 0;
    if (with_gain) {
#pragma omp simd reduction(+ : by_branch)
      for (int64_t l = 0; l < count; l++) by_branch += relu(z_[l] - k_ * s_[l] + o_) * dz_[l];
    }
#pragma omp simd reduction(+ : by_sum, plain)
    for (int64_t l = 0; l < count; l++) {
      const T m = z_[l] - k_ * s_[l] + o_ > T(0) ? dz_[l] : T(0);
      dy_[l] = dz_[l] + g_ * m;
      ds_[l] += kg * m;
      by_sum += m * s_[l];
      plain += m;
    }
    sums.by_sum[c] += by_sum;
    sums.plain[c] += plain;
    sums.by_branch[c] += by_branch;
  }

  // Channels first <= c < last of one place, which have the sum s[s_at] in common.
  void place(int64_t at, int64_t s_at, int64_t first, int64_t last, const Partial<T>& sums) const {
    const T *__restrict__ dz_ = dz + at, *__restrict__ z_ = z + at;
    T *__restrict__ dy_ = dy + at, *__restrict__ by_sum = sums.by_sum, *__restrict__ plain = sums.plain;
    const T sum = s[s_at];
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t c = first; c < last; c++) {
      const T m = z_[c] - k[c] * sum + o[c] > T(0) ? dz_[c] : T(0);
      dy_[c] = dz_[c] + g[c] * m;
      total -= k[c] * g[c] * m;
      by_sum[c] += m * sum;
      plain[c] += m;
    }
    ds[s_at] = total;
    if (!with_gain) return;
    T* __restrict__ by_branch = sums.by_branch;
#pragma omp simd
    for (int64_t c = first; c < last; c++) by_branch[c] += relu(z_[c] - k[c] * sum + o[c]) * dz_[c];
  }

  // All channels of one place of a depthwise layer, each with its own sum.
  void depthwise(int64_t at, int64_t channels, const Partial<T>& sums) const {
    const T *__restrict__ dz_ = dz + at, *__restrict__ z_ = z + at, *__restrict__ s_ = s + at;
    T *__restrict__ dy_ = dy + at, *__restrict__ ds_ = ds + at;
    T *__restrict__ by_sum = sums.by_sum, *__restrict__ plain = sums.plain, *__restrict__ by_branch = sums.by_branch;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) {
      const T t = z_[c] - k[c] * s_[c] + o[c], m = t > T(0) ? dz_[c] : T(0);
      dy_[c] = dz_[c] + g[c] * m;
      ds_[c] = -k[c] * g[c] * m;
      by_sum[c] += m * s_[c];
      plain[c] += m;
      by_branch[c] += relu(t) * dz_[c];
    }
  }
};

// Items of work, in the order in which their sums are added up: about kRow places of every channel each.
constexpr int64_t kRow = 256;

template <typename T, typename F>
std::vector<T> by_items(int64_t items, int64_t grain, int64_t channels, const F& work) {
  std::vector<T> partial(items * 3 * channels, T(0));
  at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      T* const p = partial.data() + i * 3 * channels;
      work(i, Partial<T>{p, p + channels, p + 2 * channels});
    }
  });
  for (int64_t i = 1; i < items; i++) {
    const T* const p = partial.data() + i * 3 * channels;
#pragma omp simd
    for (int64_t c = 0; c < 3 * channels; c++) partial[c] += p[c];
  }
  return partial;
}

template <typename T>
std::vector<T> sweep(const Backward<T>& backward, const Shape& shape) {
  const int64_t channels = shape.channels(), places = shape.places, per_group = shape.per_group, batch = shape.batch;
  if (shape.channels_last) {
    const int64_t rows = batch * places, items = ceil_div(rows, kRow);
    return by_items<T>(items, ceil_div(kGrain, kRow * channels), channels, [&](int64_t i, const Partial<T>& sums) {
      for (int64_t row = i * kRow; row < std::min((i + 1) * kRow, rows); row++) {
        if (per_group == 1) backward.depthwise(row * channels, channels, sums);
        for (int64_t g = 0; per_group > 1 && g < shape.groups; g++)
          backward.place(row * channels, row * shape.groups + g, g * per_group, (g + 1) * per_group, sums);
      }
    });
  }
  // Small maps: several images an item; large ones: several items an image.
  const int64_t images = std::max<int64_t>(1, kRow / places), blocks = ceil_div(places, kRow);
  const int64_t items = ceil_div(batch, images) * blocks, work = std::min(places, kRow) * images * channels;
  return by_items<T>(items, ceil_div(kGrain, work), channels, [&](int64_t i, const Partial<T>& sums) {
    const int64_t start = i % blocks * kRow, count = std::min(kRow, places - start), image = i / blocks * images;
    for (int64_t n = image; n < std::min(image + images, batch); n++) {
      for (int64_t c = 0; c < channels; c++) {
        const int64_t s_at = (n * shape.groups + c / per_group) * places + start;
        if (c % per_group == 0) std::fill_n(backward.ds + s_at, count, T(0));
        backward.row((n * channels + c) * places + start, s_at, count, c, sums);
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> collide_backward(
    const Tensor& dz, const Tensor& z, bool z_is_y, const Tensor& s, const Tensor& collision, double factor,
    const Vector& offset, const Vector& gain) {
  at::AutoDispatchBelowADInplaceOrView guard;
  check_collision("z", z, s, collision, offset, gain);
  check_type("dz", dz, "z", z);
  TORCH_CHECK(dz.sizes() == z.sizes(), "icnets: dz has shape ", dz.sizes(), " and z ", z.sizes());
  const Shape shape(z, s.size(1));
  const int64_t channels = shape.channels();
  const Tensor dy = at::empty_like(z), sums = shape.sums(s), ds = at::empty_like(sums);
  const Tensor gradient = shape.channels_last ? dz.movedim(1, -1).contiguous() : dz.contiguous();
  const Tensor vectors = at::empty({3, channels}, z.options().memory_format(at::MemoryFormat::Contiguous));
  AT_DISPATCH_FLOATING_TYPES(z.scalar_type(), "collide_backward", [&] {
    using T = scalar_t;
    const Vector w = collision;
    const Channels<T> own(channels, {{&w, factor, 0}, {&offset, 1, 0}, {&gain, 1, 1}});
    const T* const g = own.row(2);
    const Backward<T> backward{gradient.const_data_ptr<T>(), z.const_data_ptr<T>(), sums.const_data_ptr<T>(),
                               dy.mutable_data_ptr<T>(), ds.mutable_data_ptr<T>(), own.row(0), own.row(1), g,
                               gain.has_value()};
    const std::vector<T> total = sweep<T>(backward, shape);
    T* const out = vectors.mutable_data_ptr<T>();
    for (int64_t c = 0; c < channels; c++) {
      out[c] = T(-factor) * g[c] * total[c];
      out[channels + c] = g[c] * total[channels + c];
      out[2 * channels + c] = total[2 * channels + c] / (z_is_y ? T(1) : 1 + g[c]);  // t off z is (1 + gain) u
    }
  });
  return {dy, shape.channels_last ? ds.movedim(-1, 1) : ds, vectors[0], vectors[1], vectors[2]};
}

}  // namespace icnets
