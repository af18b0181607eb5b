// The passes of an IC unit on CPUs: each element of an activation is read once, and written once (ours).
//
// The formulas are those of kernels/passes.py, which needs no compiler and several passes. Activations are (N, C, *L),
// dense, contiguous or channels last; sums s are (N, groups, *L); vectors (C,). Every reduction has an order that
// depends on the shape alone, so that results are the same for any number of threads.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using at::IntArrayRef;
using at::Tensor;
using Vector = std::optional<Tensor>;

constexpr int64_t kGrain = 1 << 14;  // elements below which a second thread costs more than it saves

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
T relu(T u) { return u <= T(0) ? T(0) : u; }  // keeps NaN

// How an activation lies in memory.
struct Shape {
  int64_t batch, groups, per_group, places;
  bool channels_last;

  Shape(const Tensor& y, int64_t groups)
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
      TORCH_CHECK(v.numel() == size, "icnets: a vector has ", v.numel(), " entries for ", size, " channels");
      const T* p = v.const_data_ptr<T>();
      for (int64_t c = 0; c < size; c++) values.push_back(T(factor) * p[c]);
    }
  }
  const T* row(int64_t i) const { return values.data() + i * size; }
};

// One pass: z = f(channel)(z, s) everywhere. `f(c)` is a copy of the channel's numbers, which the loops keep in registers.
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

// The sum of the inputs in each receptive field.

// Sums over each group's channels, in blocks of 64: (N, groups, places), or (N, places, groups) for channels last.
template <typename T>
void channel_sum(const Tensor& x, T* out, const Shape& shape) {
  const T* const in = x.const_data_ptr<T>();
  const int64_t places = shape.places, per_group = shape.per_group;
  if (shape.channels_last) {
    at::parallel_for(0, shape.batch * places * shape.groups, ceil_div(kGrain, per_group), [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; i++) {
        const T* row = in + i * per_group;
        T total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t c = 0; c < per_group; c++) total += row[c];
        out[i] = total;
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
      T* __restrict__ total = out + group * places + first;
      std::fill_n(total, width, T(0));
      for (int64_t start = 0; start < per_group; start += 64) {
        T part[kBlock] = {};
        for (int64_t c = start; c < std::min(start + 64, per_group); c++) {
          const T* __restrict__ row = in + (group * per_group + c) * places + first;
#pragma omp simd
          for (int64_t l = 0; l < width; l++) part[l] += row[l];
        }
#pragma omp simd
        for (int64_t l = 0; l < width; l++) total[l] += part[l];
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
Tensor window_sum(const Tensor& t, int64_t dim, int64_t window, int64_t stride, int64_t padding, int64_t dilation) {
  if (window == 1 && stride == 1 && padding == 0) return t;
  const int64_t size = t.size(dim), length = (size + 2 * padding - dilation * (window - 1) - 1) / stride + 1;
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
Tensor field_sum(const Tensor& input, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                 IntArrayRef dilation, int64_t groups) {
  const Tensor x = dense(input) ? input : input.contiguous();
  const Shape shape(x, groups);
  const int64_t first = shape.channels_last ? 1 : 2;  // of the dimensions with places
  Tensor total;
  if (shape.per_group == 1) {
    total = shape.channels_last ? x.movedim(1, -1) : x;
  } else {
    auto sizes = (shape.channels_last ? x.movedim(1, -1) : x).sizes().vec();
    sizes[shape.channels_last ? sizes.size() - 1 : 1] = groups;
    total = at::empty(sizes, x.options().memory_format(at::MemoryFormat::Contiguous));
    channel_sum(x, total.mutable_data_ptr<T>(), shape);
  }
  for (size_t i = 0; i < kernel.size(); i++)
    total = window_sum<T>(total, first + i, kernel[i], stride[i], padding[i], dilation[i]);
  return shape.channels_last ? total.movedim(-1, 1) : total;
}

// The gradient of window_sum, along one dimension of `size`.
template <typename T>
Tensor window_spread(const Tensor& sums, int64_t dim, int64_t size, int64_t window, int64_t stride, int64_t padding,
                     int64_t dilation) {
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
  Tensor s;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "field_sums",
                             [&] { s = field_sum<scalar_t>(x, kernel, stride, padding, dilation, groups); });
  return s;
}

// Adds the gradient of field_sums to the gradient dx of its input.
Tensor& add_field_gradient_(Tensor& dx, const Tensor& ds, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                            IntArrayRef dilation) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const Shape shape(dx, ds.size(1));
  AT_DISPATCH_FLOATING_TYPES(dx.scalar_type(), "add_field_gradient_", [&] {
    Tensor total = shape.sums(ds);
    const int64_t first = shape.channels_last ? 1 : 2;
    for (size_t i = 0; i < kernel.size(); i++)
      total = window_spread<scalar_t>(total, first + i, dx.size(2 + i), kernel[i], stride[i], padding[i], dilation[i]);
    if (shape.channels_last) total = total.movedim(-1, 1);
    each<scalar_t>(dx, total, shape, [](int64_t) { return [](scalar_t a, scalar_t b) { return a + b; }; });
  });
  return dx;
}

// z = y + gain * relu(y - factor * collision * s + offset), over y.

template <typename T>
void collide(const Tensor& y, const Tensor& s, const Tensor& collision, double factor, const Vector& offset,
             const Vector& gain) {
  const Shape shape(y, s.size(1));
  const Vector w = collision;
  const Channels<T> own(shape.channels(), {{&w, factor, 0}, {&offset, 1, 0}, {&gain, 1, 1}});
  const T *k = own.row(0), *o = own.row(1), *g = own.row(2);
  each<T>(y, s, shape, [k, o, g](int64_t c) {
    return [k = k[c], o = o[c], g = g[c]](T y, T s) { return y + g * relu(y - k * s + o); };
  });
}

Tensor& collide_(Tensor& y, const Tensor& s, const Tensor& collision, double factor, const Vector& offset,
                 const Vector& gain) {
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "collide_", [&] { collide<scalar_t>(y, s, collision, factor, offset, gain); });
  return y;
}

Tensor convolve(const Tensor& x, const Tensor& weight, const Vector& bias, IntArrayRef stride, IntArrayRef padding,
                IntArrayRef dilation, int64_t groups) {
  const std::vector<int64_t> none(stride.size(), 0);
  const Tensor y = at::convolution(x, weight, bias, stride, padding, dilation, false, none, groups);
  return dense(y) ? y : y.contiguous();
}

Tensor ic_conv(const Tensor& x, const Tensor& weight, const Vector& bias, IntArrayRef stride, IntArrayRef padding,
               IntArrayRef dilation, int64_t groups, const Tensor& collision, double factor, const Vector& offset,
               const Vector& gain) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Tensor y;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "ic_conv", [&] {
    // The sum first: it leaves x in the cache for the convolution.
    const Tensor s = field_sum<scalar_t>(x, weight.sizes().slice(2), stride, padding, dilation, groups);
    y = convolve(x, weight, bias, stride, padding, dilation, groups);
    collide<scalar_t>(y, s, collision, factor, offset, gain);
  });
  return y;
}

// The deployed form: sign * prelu(conv(x), slope) + collision * s + offset, where s is a mean over places, as there.

Tensor deployed_conv(const Tensor& x, const Tensor& weight, const Vector& bias, IntArrayRef stride,
                     IntArrayRef padding, IntArrayRef dilation, int64_t groups, const Vector& slope,
                     double uniform_slope, const Vector& sign, const Vector& collision, const Vector& offset) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Tensor v;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "deployed_conv", [&] {
    Tensor s;
    if (collision) s = field_sum<scalar_t>(x, weight.sizes().slice(2), stride, padding, dilation, groups);
    v = convolve(x, weight, bias, stride, padding, dilation, groups);
    if (!collision) {
      auto sizes = v.sizes().vec();
      sizes[1] = groups;
      s = at::zeros(sizes, v.options());
    }
    const Shape shape(v, groups);
    const double mean = double(weight.size(0) * weight.size(1)) / weight.numel();
    const Channels<scalar_t> own(
        shape.channels(), {{&slope, 1, uniform_slope}, {&sign, 1, 1}, {&collision, mean, 0}, {&offset, 1, 0}});
    const scalar_t *a = own.row(0), *p = own.row(1), *k = own.row(2), *o = own.row(3);
    each<scalar_t>(v, s, shape, [a, p, k, o](int64_t c) {
      return [above = p[c], below = a[c] * p[c], k = k[c], o = o[c]](scalar_t v, scalar_t s) {
        return (v > 0 ? above : below) * v + (k * s + o);
      };
    });
  });
  return v;
}

// Gradients of collide_ from its result z, or from y with z_is_y: of y, s, collision, offset and gain.

// What a channel's sums are made of, for one item of work, (3, C): of m * s, of m, and of t where it is positive times dz.
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
      by_branch[c] += t > T(0) ? t * dz_[c] : T(0);
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

}  // namespace

TORCH_LIBRARY(icnets, m) {
  m.def(
      "ic_conv(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
      "Tensor collision, float factor, Tensor? offset, Tensor? gain) -> Tensor");
  m.def(
      "deployed_conv(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
      "Tensor? slope, float uniform_slope, Tensor? sign, Tensor? collision, Tensor? offset) -> Tensor");
  m.def("field_sums(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "add_field_gradient_(Tensor(a!) dx, Tensor ds, int[] kernel, int[] stride, int[] padding, int[] dilation) "
      "-> Tensor(a!)");
  m.def("collide_(Tensor(a!) y, Tensor s, Tensor collision, float factor, Tensor? offset, Tensor? gain) -> Tensor(a!)");
  m.def(
      "collide_backward(Tensor dz, Tensor z, bool z_is_y, Tensor s, Tensor collision, float factor, Tensor? offset, "
      "Tensor? gain) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(icnets, CPU, m) {
  m.impl("ic_conv", ic_conv);
  m.impl("deployed_conv", deployed_conv);
  m.impl("field_sums", field_sums);
  m.impl("add_field_gradient_", add_field_gradient_);
  m.impl("collide_", collide_);
  m.impl("collide_backward", collide_backward);
}
