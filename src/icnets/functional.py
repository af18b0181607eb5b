"""The unit as functions; another name for :mod:`icnets.unit.functional`."""

from icnets.unit.functional import collide, ic_conv1d, ic_conv2d, ic_conv3d, ic_linear, receptive_field_sum

__all__ = ["collide", "ic_conv1d", "ic_conv2d", "ic_conv3d", "ic_linear", "receptive_field_sum"]
