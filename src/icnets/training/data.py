"""A former name, which guides and notebooks gave; the data module is in :mod:`icnets.data.data_module`."""

from icnets.data.data_module import ImageData

__all__ = ["ImageData"]
