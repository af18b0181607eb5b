// The collision, over a convolution's output, and the deployed form.

#pragma once

#include "field_sum.h"

namespace icnets {

// z = y + gain * relu(y - factor * collision * s + offset), over y.

template <typename T>
void collide(const Tensor& y, const Tensor& s, const Tensor& collision, double factor, const Vector& offset,
             const Vector& gain) {
  const Shape shape(y, s.size(1));
  each<T>(y, s, shape, unit_numbers<T>(shape, collision, factor, offset, gain), [](auto y, auto s, const auto& own) {
    const auto& [k, o, g] = own;
    return y + g * relu(y - k * s + o);
  });
}

Tensor& collide_(Tensor& y, const Tensor& s, const Tensor& collision, double factor, const Vector& offset,
                 const Vector& gain) {
  check_collision("y", y, s, collision, offset, gain);
  at::assert_no_overlap(y, s);
  dispatch(y, [&]<typename T>() { collide<T>(y, s, collision, factor, offset, gain); });
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
  dispatch(x, [&]<typename T>() {
    // The sum first: it leaves x in the cache for the convolution.
    const Tensor s = field_sum<T>(x, windows, groups);
    y = convolve(x, weight, bias, stride, padding, dilation, groups);
    collide<T>(y, s, collision, factor, offset, gain);
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
  dispatch(x, [&]<typename T>() {
    Tensor s;
    if (collision) s = field_sum<T>(x, windows, groups);
    v = convolve(x, weight, bias, stride, padding, dilation, groups);
    if (!collision) {
      auto sizes = v.sizes().vec();
      sizes[1] = groups;
      s = at::zeros(sizes, v.options().dtype(work_type(v)));
    }
    const Shape shape(v, groups);
    const double mean = double(weight.size(0) * weight.size(1)) / weight.numel();
    const Channels<Work<T>, 4> numbers(
        shape.channels(), {{{&slope, 1, uniform_slope}, {&sign, 1, 1}, {&collision, mean, 0}, {&offset, 1, 0}}});
    each<T>(v, s, shape, numbers, [](auto v, auto s, const auto& own) {
      const auto& [slope, sign, k, o] = own;
      return (v > decltype(v){} ? sign : slope * sign) * v + (k * s + o);
    });
  });
  return v;
}

}  // namespace icnets
