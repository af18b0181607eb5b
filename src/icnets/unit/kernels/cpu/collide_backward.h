// Gradients of collide_ from its result z, or from y with z_is_y: of y, s, collision, offset and gain.

#pragma once

#include "activations.h"

namespace icnets {

// One item's share of the channels' sums, (C,) each: of m * s, of m, and of t where it is positive times dz.
template <typename A>
struct Partial {
  A *by_sum, *plain, *by_branch;
};

template <typename T>
struct Backward {
  using A = Work<T>;
  const T *dz, *z;
  const A* s;
  T* dy;
  A* ds;
  const Channels<A, 3>& numbers;  // factor * collision, offset, gain
  bool with_gain;

  // W elements: stores dy; returns m, t where it is positive times dz, and the elements' share of ds.
  template <int W>
  std::array<Lanes<A, W>, 3> at(int64_t i, const Lanes<A, W>& s, const std::array<Lanes<A, W>, 3>& own) const {
    const auto& [k, o, g] = own;
    const Lanes<A, W> d = load<W>(dz + i), t = load<W>(z + i) - k * s + o, m = t > Lanes<A, W>{} ? d : Lanes<A, W>{};
    store<W>(dy + i, d + g * m);
    return {m, with_gain ? relu(t) * d : m, -k * g * m};
  }

  // One row of `count` places of channel c; `ds` is added to.
  void row(int64_t start, int64_t s_at, int64_t count, int64_t c, const Partial<A>& sums) const {
    const auto own = numbers.template at<1>(c);
    A* const to = ds + s_at;
    Sum<A> by_sum, plain, by_branch;
    by_lanes<A>(count, [&]<int W>(int64_t l) {
      const Lanes<A, W> s_ = load<W>(s + s_at + l);
      const auto [m, branch, share] = at<W>(start + l, s_, spread_all<W>(own));
      store<W>(to + l, load<W>(to + l) + share);
      by_sum.template add<W>(m * s_);
      plain.template add<W>(m);
      by_branch.template add<W>(branch);
    });
    sums.by_sum[c] += by_sum.value();
    sums.plain[c] += plain.value();
    sums.by_branch[c] += by_branch.value();
  }

  // A tile, channels last: places first <= row < last of `count` channels from `start` on. They have the sums at
  // `s_at` in common, one for `stride` of them; in a depthwise layer each has its own.
  template <bool kDepthwise>
  void tile(int64_t first, int64_t last, int64_t channels, int64_t start, int64_t count, int64_t s_at, int64_t stride,
            const Partial<A>& sums) const {
    Sum<A> shares[kTile];
    by_lanes<A>(count, [&]<int W>(int64_t i) {
      const int64_t c = start + i;
      const auto own = numbers.template at<W>(c);
      Lanes<A, W> by_sum = load<W>(sums.by_sum + c), plain = load<W>(sums.plain + c),
                  by_branch = load<W>(sums.by_branch + c);
      for (int64_t row = first; row < last; row++) {
        const A* const from = s + row * stride + s_at;
        Lanes<A, W> s_;
        if constexpr (kDepthwise) s_ = load<W>(from + i);
        else s_ = spread<W>(*from);
        const auto [m, branch, share] = at<W>(row * channels + c, s_, own);
        if constexpr (kDepthwise) store<W>(ds + row * stride + i, share);
        else shares[row - first].template add<W>(share);
        by_sum += m * s_;
        plain += m;
        by_branch += branch;
      }
      store<W>(sums.by_sum + c, by_sum);
      store<W>(sums.plain + c, plain);
      store<W>(sums.by_branch + c, by_branch);
    });
    for (int64_t row = first; !kDepthwise && row < last; row++) ds[row * stride + s_at] = shares[row - first].value();
  }
};

// Items of work, in the order in which their sums are added up: about kRow places of every channel each; of a large map
// whose channels lie apart, kLong, so that what lies side by side is read in one go.
constexpr int64_t kRow = 256, kLong = 1024;

template <typename A, typename F>
std::vector<A> by_items(int64_t items, int64_t grain, int64_t channels, const F& work) {
  std::vector<A> partial(items * 3 * channels, A(0));
  at::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      A* const p = partial.data() + i * 3 * channels;
      work(i, Partial<A>{p, p + channels, p + 2 * channels});
    }
  });
  for (int64_t i = 1; i < items; i++) {
    const A* const p = partial.data() + i * 3 * channels;
#pragma omp simd
    for (int64_t c = 0; c < 3 * channels; c++) partial[c] += p[c];
  }
  return partial;
}

template <typename T>
std::vector<Work<T>> sweep(const Backward<T>& backward, const Shape& shape) {
  using A = Work<T>;
  const int64_t channels = shape.channels(), places = shape.places, per_group = shape.per_group, batch = shape.batch;
  if (shape.channels_last) {
    const int64_t rows = batch * places, items = ceil_div(rows, kRow), step = tile(channels);
    return by_items<A>(items, ceil_div(kGrain, kRow * channels), channels, [&](int64_t i, const Partial<A>& sums) {
      const int64_t end = std::min((i + 1) * kRow, rows);
      for (int64_t first = i * kRow; first < end; first += step) {
        const int64_t last = std::min(first + step, end);
        if (per_group == 1) backward.template tile<true>(first, last, channels, 0, channels, 0, channels, sums);
        for (int64_t g = 0; per_group > 1 && g < shape.groups; g++)
          backward.template tile<false>(first, last, channels, g * per_group, per_group, g, shape.groups, sums);
      }
    });
  }
  // Small maps: several images an item; large ones: several items an image.
  const int64_t images = std::max<int64_t>(1, kRow / places), blocks = ceil_div(places, kLong);
  const int64_t length = ceil_div(places, blocks), items = ceil_div(batch, images) * blocks;
  const int64_t work = length * images * channels;
  return by_items<A>(items, ceil_div(kGrain, work), channels, [&](int64_t i, const Partial<A>& sums) {
    const int64_t start = i % blocks * length, count = std::min(length, places - start), image = i / blocks * images;
    for (int64_t n = image; n < std::min(image + images, batch); n++) {
      for (int64_t c = 0; c < channels; c++) {
        const int64_t s_at = (n * shape.groups + c / per_group) * places + start;
        if (c % per_group == 0) std::fill_n(backward.ds + s_at, count, A(0));
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
  const auto options = z.options().dtype(work_type(z)).memory_format(at::MemoryFormat::Contiguous);
  const Tensor vectors = at::empty({3, channels}, options);
  dispatch(z, [&]<typename T>() {
    using A = Work<T>;
    const auto numbers = unit_numbers<T>(shape, collision, factor, offset, gain);
    const A* const g = numbers.row(2);
    const Backward<T> backward{gradient.const_data_ptr<T>(), z.const_data_ptr<T>(), sums.const_data_ptr<A>(),
                               dy.mutable_data_ptr<T>(), ds.mutable_data_ptr<A>(), numbers, gain.has_value()};
    const std::vector<A> total = sweep<T>(backward, shape);
    A* const out = vectors.mutable_data_ptr<A>();
    for (int64_t c = 0; c < channels; c++) {
      out[c] = A(-factor) * g[c] * total[c];
      out[channels + c] = g[c] * total[channels + c];
      out[2 * channels + c] = total[2 * channels + c] / (z_is_y ? A(1) : 1 + g[c]);  // t off z is (1 + gain) u
    }
  });
  return {dy, shape.channels_last ? ds.movedim(-1, 1) : ds, vectors[0], vectors[1], vectors[2]};
}

}  // namespace icnets
