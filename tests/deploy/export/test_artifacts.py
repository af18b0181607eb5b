"""What is in the files, and what isn't."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from deploy.export.artifacts import IMAGE, needs, tiny
from icnets.export import export


def test_onnx_has_standard_operators_notes_and_no_trace_of_its_maker(tmp_path: Path) -> None:
    needs("onnx")
    import onnx

    path = tmp_path / "net.onnx"
    export(tiny(), path, "onnx", IMAGE, metadata={"class_names": ["a", "b", "c"], "source": "text"})
    proto = onnx.load(path)
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    operators = {node.op_type for node in proto.graph.node}
    assert operators & {"PRelu", "LeakyRelu"}
    assert "BatchNormalization" not in operators
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert (shape[0].dim_param, [d.dim_value for d in shape[1:]]) == ("batch", [2, 12, 12])
    notes = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(notes["class_names"]) == ["a", "b", "c"]
    assert notes["source"] == "text"
    assert (json.loads(notes["input_size"]), json.loads(notes["fused"])) == ([2, 12, 12], True)
    for secret in (str(Path(__file__).parents[3]), "site-packages", "stack_trace"):
        assert secret.encode() not in path.read_bytes()


def test_notes_of_the_other_formats(tmp_path: Path) -> None:
    needs("openvino")
    import openvino

    export(tiny(), tmp_path / "net.xml", "openvino", IMAGE, metadata={"std": [2.0, 3.0]})
    model = openvino.Core().read_model(tmp_path / "net.xml")
    assert json.loads(model.get_rt_info(["model_info", "std"]).astype(str)) == [2.0, 3.0]
    export(tiny(), tmp_path / "net.pt2", "torch-export", IMAGE, metadata={"std": [2.0, 3.0]})
    extra = {"icnets.json": ""}
    torch.export.load(tmp_path / "net.pt2", extra_files=extra)
    assert json.loads(json.loads(extra["icnets.json"])["std"]) == [2.0, 3.0]
    assert str(Path(__file__).parents[3]).encode() not in (tmp_path / "net.pt2").read_bytes()


def test_engines_are_imported_without_reporting_home(tmp_path: Path) -> None:
    needs("openvino")
    code = """
import os
from icnets.deploy.export.engines import _openvino
before = dict(os.environ)
_openvino()
assert before == os.environ
"""
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not (tmp_path / "intel").exists()  # where the identification of this user would be kept
