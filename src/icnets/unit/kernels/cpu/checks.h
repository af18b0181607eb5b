// Checks of the operators' arguments, before anything is computed: what passes them can't divide by zero, leave a
// tensor's memory or overflow. The dispatcher has refused other devices and layouts already.

#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv3d.h>

#include <array>
#include <limits>
#include <optional>

namespace icnets {

using at::IntArrayRef;
using at::Tensor;
using Vector = std::optional<Tensor>;

constexpr int64_t kMost = (int64_t(1) << 31) - 1;  // of a window's numbers: no product of two overflows
constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

// The windows over one to three dimensions of `places`; as in torch, one number may stand for all dimensions.
struct Windows {
  size_t nd;
  std::array<int64_t, 3> kernel, stride, padding, dilation, length;  // `length` is the result's

  Windows(IntArrayRef places, IntArrayRef kernels, IntArrayRef strides, IntArrayRef paddings, IntArrayRef dilations)
      : nd(places.size()) {
    TORCH_CHECK(nd >= 1 && nd <= 3 && kernels.size() == nd, "icnets: kernel is ", kernels, " for places of ", places);
    kernel = each("kernel", kernels, 1, kMost);
    stride = each("stride", strides, 1, kAny);
    padding = each("padding", paddings, 0, kMost);
    dilation = each("dilation", dilations, 1, kMost);
    for (size_t i = 0; i < nd; i++) {
      const int64_t extent = places[i] + 2 * padding[i], reach = dilation[i] * (kernel[i] - 1) + 1;
      TORCH_CHECK(places[i] <= kAny / 2 && extent >= reach, "icnets: a window reaches over ", reach,
                  " places, but the padded input has ", extent);
      length[i] = (extent - reach) / stride[i] + 1;
    }
  }
  IntArrayRef lengths() const { return {length.data(), nd}; }

 private:
  std::array<int64_t, 3> each(const char* name, IntArrayRef values, int64_t least, int64_t most) const {
    TORCH_CHECK(values.size() == nd || values.size() == 1, "icnets: ", name, " is ", values, "; it must have one or ",
                nd, " numbers");
    std::array<int64_t, 3> found{};
    for (size_t i = 0; i < nd; i++) {
      found[i] = values[values.size() == 1 ? 0 : i];
      TORCH_CHECK(found[i] >= least && found[i] <= most, "icnets: ", name, " is ", values,
                  "; its numbers must be from ", least, " to ", most);
    }
    return found;
  }
};

void check_activation(const char* name, const Tensor& t, int64_t groups) {
  TORCH_CHECK(t.dim() >= 3 && t.dim() <= 5 && t.numel() > 0, "icnets: ", name, " has shape ", t.sizes(),
              "; it must be (N, C, *L) and not empty");
  TORCH_CHECK(groups > 0 && t.size(1) % groups == 0, "icnets: ", name, " has ", t.size(1), " channels, which ", groups,
              " groups don't divide");
}

at::ScalarType work_type(const Tensor& t) {
  return t.scalar_type() == at::kBFloat16 ? at::kFloat : t.scalar_type();
}

void check_type(const char* name, const Tensor& t, const char* other, const Tensor& like) {
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), "icnets: ", name, " is ", t.scalar_type(), " and ", other, " is ",
              like.scalar_type(), "; they must be the same");
}

// Sums (N, groups, *places) for y (N, C, *L), in single precision for half.
void check_sums(const char* name, const Tensor& s, const char* other, const Tensor& y, IntArrayRef places) {
  TORCH_CHECK(s.dim() >= 3 && s.size(0) == y.size(0) && s.sizes().slice(2) == places, "icnets: ", name, " has shape ",
              s.sizes(), "; for ", other, " of shape ", y.sizes(), " it must be (", y.size(0), ", groups, ", places,
              ")");
  TORCH_CHECK(s.scalar_type() == work_type(y), "icnets: ", name, " is ", s.scalar_type(), " and ", other, " is ",
              y.scalar_type(), "; sums must be ", work_type(y));
}

void check_vector(const char* name, const Tensor& v, int64_t channels) {
  TORCH_CHECK(v.dim() == 1 && v.size(0) == channels, "icnets: ", name, " has shape ", v.sizes(), " for ", channels,
              " channels");
  TORCH_CHECK(v.is_floating_point(), "icnets: ", name, " is ", v.scalar_type(), "; it must be a floating-point type");
}

void check_vector(const char* name, const Vector& v, int64_t channels) {
  if (v) check_vector(name, *v, channels);
}

void check_unit(int64_t channels, const Tensor& collision, const Vector& offset, const Vector& gain) {
  check_vector("collision", collision, channels);
  check_vector("offset", offset, channels);
  check_vector("gain", gain, channels);
}

// An activation y or z, its sums, and the vectors of its channels.
void check_collision(const char* name, const Tensor& y, const Tensor& s, const Tensor& collision, const Vector& offset,
                     const Vector& gain) {
  TORCH_CHECK(s.dim() == y.dim() && s.dim() >= 3, "icnets: s has shape ", s.sizes(), " and ", name, " ", y.sizes());
  check_activation(name, y, s.size(1));
  check_sums("s", s, name, y, y.sizes().slice(2));
  check_unit(y.size(1), collision, offset, gain);
}

// The windows of a convolution that torch takes; what torch refuses is refused in its own words.
Windows check_convolution(const Tensor& x, const Tensor& weight, const Vector& bias, IntArrayRef stride,
                          IntArrayRef padding, IntArrayRef dilation, int64_t groups) {
  try {
    check_activation("x", x, groups);
    TORCH_CHECK(weight.dim() == x.dim() && weight.numel() > 0 && weight.size(0) % groups == 0 &&
                    weight.size(1) == x.size(1) / groups,
                "icnets: weight has shape ", weight.sizes(), " for x of shape ", x.sizes(), " and ", groups, " groups");
    check_type("weight", weight, "x", x);
    check_vector("bias", bias, weight.size(0));
    if (bias) check_type("bias", *bias, "x", x);
    return Windows(x.sizes().slice(2), weight.sizes().slice(2), stride, padding, dilation);
  } catch (const c10::Error&) {
    if (weight.dim() == 3) at::conv1d(x, weight, bias, stride, padding, dilation, groups);
    if (weight.dim() == 4) at::conv2d(x, weight, bias, stride, padding, dilation, groups);
    if (weight.dim() == 5) at::conv3d(x, weight, bias, stride, padding, dilation, groups);
    throw;
  }
}

}  // namespace icnets
