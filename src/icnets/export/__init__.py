"""Artefacts for other engines, each reloaded and compared with PyTorch before it is announced.

from icnets.export import export

print(export(model, "model.onnx", "onnx", images))
"""

from icnets.export.command import main
from icnets.export.core import export
from icnets.export.report import ExportReport, Parity

__all__ = ["ExportReport", "Parity", "export", "main"]
