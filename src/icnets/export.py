"""Artifacts for other engines; another name for :mod:`icnets.deploy.export`.

from icnets.export import export

print(export(model, "model.onnx", "onnx", images))
"""

from icnets.deploy.export.core import export
from icnets.deploy.export.parity import ExportReport, Parity

__all__ = ["ExportReport", "Parity", "export"]
