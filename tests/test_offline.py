"""Nothing is sent to other machines: libraries do not report their use to their makers."""

import os
import subprocess
import sys

import pytest
from offline import ASK, SAID, offline, way

from embedding_finetune.settings import ROOT

SESSION = """
import onnx, onnxruntime
from onnx import TensorProto, helper
one, other = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("a", "b"))
graph = helper.make_graph([helper.make_node("Abs", ["a"], ["b"])], "graph", [one], [other])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""
WAIT = """
import time
from offline import attempts
until = time.monotonic() + {}
while time.monotonic() < until and not attempts():
    time.sleep(0.1)
"""


def started(program, seconds, home, **environment):
    """A process that waits for an attempt, so many seconds, as a person's would: both keep silent under CI."""
    environment |= {"PATH": os.environ["PATH"], "HOME": str(home),
                    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.Popen(offline(sys.executable, "-c", program + WAIT.format(seconds)), stdout=subprocess.PIPE,
                            text=True, env=environment)


@pytest.mark.long
@pytest.mark.skipif(not way(), reason="a network namespace cannot be made here: unshare -n is refused, or missing")
def test_libraries_report_nothing_to_their_makers(tmp_path):
    ours = ("from embedding_finetune.models.compiled_model import import_silently, openvino_core\n"
            "openvino_core(), import_silently('nncf')" + SESSION)
    processes = {"ours": started(ours, 12, tmp_path), "asked": started(ASK, 12, tmp_path),
                 "onnxruntime": started(ours, 60, tmp_path, ORT_DISABLE_TELEMETRY="0"),
                 "openvino": started("import openvino.tools.ovc", 60, tmp_path)}
    said = {name: int(process.communicate()[0].splitlines()[-1].removeprefix(SAID))
            for name, process in processes.items()}
    assert said.pop("ours") == 0 < said.pop("asked")
    if not all(said.values()):  # what libraries of others do where they are let is not ours to promise
        pytest.skip(f"nothing is to be switched off here: {said}")
