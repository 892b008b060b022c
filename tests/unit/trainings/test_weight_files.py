"""Headers of weight files are read without torch, and no pickle can run a program."""

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from extraction_kit.errors import BadSae
from extraction_kit.trainings.sae_formats.weight_files import read_headers, read_number

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_headers_of_a_pt_file_are_those_of_its_tensors(tmp_path, dtype):
    tensors = OrderedDict(a=torch.ones(3, 5, dtype=dtype), b=torch.tensor(7, dtype=dtype))
    torch.save(tensors, tmp_path / "ae.pt")
    found = read_headers(tmp_path / "ae.pt", "")
    assert {name: each.shape for name, each in found.items()} == {"a": (3, 5), "b": ()}
    assert {each.dtype for each in found.values()} == {DTYPES[dtype]}
    if dtype is not torch.bfloat16:
        assert read_number(tmp_path / "ae.pt", "b") == 7


def test_a_number_inside_a_larger_storage_is_found(tmp_path):
    whole = torch.arange(10, dtype=torch.float32)
    torch.save({"one": whole[6], "row": whole[2:4]}, tmp_path / "ae.pt")
    assert read_headers(tmp_path / "ae.pt", "")["row"].shape == (2,)
    assert read_number(tmp_path / "ae.pt", "one") == 6


def test_parameters_and_the_state_of_a_module_are_read(tmp_path):
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "state.pt")
    torch.save({"p": torch.nn.Parameter(torch.ones(4))}, tmp_path / "parameter.pt")
    assert read_headers(tmp_path / "state.pt", "")["weight"].shape == (2, 3)
    assert read_headers(tmp_path / "parameter.pt", "")["p"].shape == (4,)


class Harmful:
    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_a_pickle_that_would_run_a_program_is_refused_and_runs_nothing(tmp_path):
    harmful = Harmful()
    harmful.place = tmp_path / "made-by-the-pickle"
    torch.save({"W_enc": harmful}, tmp_path / "ae.pt")
    with pytest.raises(BadSae, match=r"holds (posix|nt)\.mkdir.*can run any program"):
        read_headers(tmp_path / "ae.pt", "")
    assert not harmful.place.exists()
    pickle.loads(pickle.dumps(harmful))  # noqa: S301 - shows that it does harm elsewhere
    assert harmful.place.exists()


def test_a_module_or_other_objects_are_refused(tmp_path):
    torch.save(torch.nn.Linear(3, 2), tmp_path / "module.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save({"k": 4, "W": torch.ones(2)}, tmp_path / "number.pt")
    for name, said in {
        "module": r"torch\.nn\.modules\.linear\.Linear.*state_dict",
        "list": "a list",
        "number": "'k', a int",
    }.items():
        with pytest.raises(BadSae, match=said):
            read_headers(tmp_path / f"{name}.pt", "")


@pytest.mark.parametrize("keep", [0, 10, 200, -1, -400])
def test_a_torn_pt_file_is_refused(tmp_path, keep):
    path = tmp_path / "ae.pt"
    torch.save({"W": torch.ones(50, 50)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadSae, match=r"torn or not a \.pt file.*copy it again"):
        read_headers(path, "copy it again")


def test_a_storage_shorter_than_its_tensor_is_refused(tmp_path):
    torch.save({"W": torch.ones(50, 50)}, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "short.pt", "w") as short,
    ):
        for name in whole.namelist():
            content = whole.read(name)
            short.writestr(name, content[:99] if name.endswith("/data/0") else content)
    with pytest.raises(BadSae, match="W needs 10,000 bytes, 99 are there"):
        read_headers(tmp_path / "short.pt", "")


def test_files_written_before_torch_1_6_and_other_archives_are_refused(tmp_path):
    torch.save(
        {"W": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False
    )
    with pytest.raises(BadSae, match="torn or not"):
        read_headers(tmp_path / "old.pt", "")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme", "no tensors")
    with pytest.raises(BadSae, match=r"no data\.pkl"):
        read_headers(tmp_path / "other.pt", "")


def test_headers_of_an_npz_file_are_those_of_its_arrays(tmp_path):
    path = tmp_path / "params.npz"
    np.savez(path, a=np.ones((3, 5), np.float32), b=np.ones((), np.float16))
    np.savez_compressed(tmp_path / "small.npz", a=np.ones((3, 5), np.float32))
    found = read_headers(path, "")
    assert (found["a"].dtype, found["a"].shape) == ("F32", (3, 5))
    assert (found["b"].dtype, found["b"].shape) == ("F16", ())
    assert read_number(path, "b") == 1
    assert read_headers(tmp_path / "small.npz", "")["a"].shape == (3, 5)


def test_arrays_of_python_objects_and_torn_npz_files_are_refused(tmp_path):
    path = tmp_path / "params.npz"
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(BadSae, match=r"array of Python objects.*can run any program"):
        read_headers(path, "")
    np.savez(path, a=np.ones(9))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadSae, match=r"torn or not a \.npz file.*again"):
        read_headers(path, "again")


@pytest.mark.parametrize("name", ["ae.pt", "params.npz", "sae.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(BadSae, match=f"there is no .*{name}: copy it"):
        read_headers(tmp_path / name, "copy it")
