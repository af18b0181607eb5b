// The passes of an IC unit on CPUs: each element of an activation is read once, and written once.
//
// The formulas are those of unit/functional.py, which need no compiler and several passes. Every reduction has an order
// that depends on the shape alone, so that results are the same for any number of threads.

#include "collide.h"
#include "collide_backward.h"
#include "field_sum.h"

#include <torch/library.h>

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
  m.impl("ic_conv", icnets::ic_conv);
  m.impl("deployed_conv", icnets::deployed_conv);
  m.impl("field_sums", icnets::field_sums);
  m.impl("add_field_gradient_", icnets::add_field_gradient_);
  m.impl("collide_", icnets::collide_);
  m.impl("collide_backward", icnets::collide_backward);
}
