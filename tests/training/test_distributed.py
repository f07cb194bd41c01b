"""What the processes of a training agree on before they begin."""

import torch
from forked import run_forked
from several_processes import together


def test_processes_that_were_started_differently_or_share_no_disk_are_told(tiny, tmp_path):
    status, said = run_forked(together, "agreement", tiny, tmp_path, 2, log=tmp_path / "log")
    assert status == 0, said
    of_0, of_1 = (torch.load(tmp_path / f"said_{rank}.pt") for rank in range(2))
    assert of_0[0] is of_1[0] is of_0[2] is of_1[2] is None
    assert of_0[1] == of_1[1] and of_0[1].startswith("process 1 has other training file (")
    for said in (of_0[3], of_1[3]):
        assert said.startswith("process 1 does not see what process 0 writes to ") and "a disk that all nodes" in said
    assert not list(tmp_path.glob(".seen*"))
