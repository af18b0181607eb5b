// The collision, over a convolution's output, and the deployed form.

#pragma once

#include "field_sum.h"

namespace icnets {

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
  check_collision("y", y, s, collision, offset, gain);
  at::assert_no_overlap(y, s);
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "collide_",
                             [&] { collide<scalar_t>(y, s, collision, factor, offset, gain); });
  return y;
}

Tensor convolve(const Tensor& x, const Tensor& weight, const Vector& bias, IntArrayRef stride, IntArrayRef padding,
                IntArrayRef dilation, int64_t groups) {
  const Tensor y = at::convolution(x, weight, bias, stride, padding, dilation, false, {0}, groups);
  return dense(y) ? y : y.contiguous();
}

Tensor ic_conv(const Tensor& x, const Tensor& weight, const Vector& bias, IntArrayRef stride, IntArrayRef padding,
               IntArrayRef dilation, int64_t groups, const Tensor& collision, double factor, const Vector& offset,
               const Vector& gain) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const Windows windows = check_convolution(x, weight, bias, stride, padding, dilation, groups);
  check_unit(weight.size(0), collision, offset, gain);
  Tensor y;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "ic_conv", [&] {
    // The sum first: it leaves x in the cache for the convolution.
    const Tensor s = field_sum<scalar_t>(x, windows, groups);
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
  const Windows windows = check_convolution(x, weight, bias, stride, padding, dilation, groups);
  check_vector("slope", slope, weight.size(0));
  check_vector("sign", sign, weight.size(0));
  check_vector("collision", collision, weight.size(0));
  check_vector("offset", offset, weight.size(0));
  Tensor v;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "deployed_conv", [&] {
    Tensor s;
    if (collision) s = field_sum<scalar_t>(x, windows, groups);
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

}  // namespace icnets
