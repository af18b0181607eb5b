"""Artifacts for other engines; another name for :mod:`icnets.deploy.export`.

from icnets.export import export

print(export(model, "model.onnx", "onnx", images))
"""

from icnets.deploy.export.core import export
from icnets.deploy.export.export_report import ExportReport
from icnets.deploy.export.parity import Parity

__all__ = ["ExportReport", "Parity", "export"]
