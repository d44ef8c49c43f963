"""The model in a result: in plain torch, in files of its own, and as fedmpi builds it."""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import fedmpi
from fedmpi.datasets import synthetic
from fedmpi.errors import BadInput
from fedmpi.results import kept, record
from fedmpi.runs import launch
from fedmpi.runs.job import Job
from tests.small import small

MLP = OrderedDict(
    hidden1=nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU()),
    hidden2=nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU()),
    head=nn.Sequential(nn.Flatten(), nn.Linear(8, 10)),
)
"""Torch's own layers, with the names of the small run's."""
CNN = OrderedDict(
    conv1=nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2, padding=0, ceil_mode=True),
    ),
    conv2=nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2, padding=0, ceil_mode=True),
    ),
    dense=nn.Sequential(nn.Flatten(), nn.Linear(16, 10), nn.ReLU()),
    head=nn.Linear(10, 10),
)
NETWORKS = {
    "mlp": (MLP, ()),
    "cnn": (
        CNN,
        ("model.name=cnn", "model.channels=[3,4]", "model.kernel=3", "model.hidden=10",
         "model.norm=batch"),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")


def result(folder: Path, *words: str) -> Path:
    Job().run(small(*words), folder / "a.h5")
    return folder / "a.h5"


def safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Reads a file as its format is described, and its metadata."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    about, values, end = header.pop("__metadata__"), content[8 + length :], 0
    assert (8 + length) % 8 == 0
    found = {}
    for name, one in header.items():
        assert one["dtype"] == "F32" and one["data_offsets"][0] == end
        end = one["data_offsets"][1]
        array = np.frombuffer(values[one["data_offsets"][0] : end], "<f4")
        found[name] = torch.from_numpy(array.reshape(one["shape"]).copy())
    assert end == len(values)
    return found, about


@pytest.mark.parametrize("case", NETWORKS)
def test_a_model_in_plain_torch_predicts_the_same(case: str, tmp_path: Path) -> None:
    stages, words = NETWORKS[case]
    path = result(tmp_path, *words)
    settings = small(*words)
    data = synthetic.load(settings.data, settings.seed)
    x = torch.from_numpy(data.test_x)
    with torch.no_grad():
        wanted = fedmpi.model(path)(x)
    for name in ("m.pt", "m.safetensors"):
        assert kept.export(path, tmp_path / name) == len(fedmpi.model(path).state_dict())
    of_torch = torch.load(tmp_path / "m.pt", weights_only=True)
    of_others, about = safetensors(tmp_path / "m.safetensors")
    assert about["round"] == "1" and about["identity"] == settings.identity()
    for state in (of_torch, of_others):
        network = nn.Sequential(stages)
        # Torch's own batch norm counts batches, which the one here does not.
        found = network.load_state_dict(state, strict=False)
        assert not found.unexpected_keys
        assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
        with torch.no_grad():
            said = network.eval()(x)
        torch.testing.assert_close(said, wanted, rtol=1e-5, atol=1e-6)
        right = (said.argmax(1).numpy() == data.test_y).mean()
        assert right == record.content(path)[1]["rounds"]["accuracy"][-1]


def test_a_client_s_model_has_its_own_parts(tmp_path: Path) -> None:
    path = result(tmp_path, "method.name=fedper")
    ours, theirs = (fedmpi.model(path, client).state_dict() for client in (None, 3))
    assert torch.equal(ours["hidden1.1.weight"], theirs["hidden1.1.weight"])
    with h5py.File(path) as file:
        assert set(file["own"]) == {"head.1.weight", "head.1.bias"}
        own = file["own"]["head.1.weight"][3]
        shared = file["model"]["head.1.weight"][:]
    np.testing.assert_array_equal(theirs["head.1.weight"], own)
    np.testing.assert_array_equal(ours["head.1.weight"], shared)
    assert not np.array_equal(own, shared)
    kept.export(path, tmp_path / "c.safetensors", 3)
    found, _ = safetensors(tmp_path / "c.safetensors")
    assert all(torch.equal(found[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("words", "client", "said"),
    [
        (("keep=none",), None, "it keeps no model; wanted a finished run with keep"),
        (("lr=1e30",), None, "the run diverged, and keeps no model"),
        ((), 2, "keeps nothing that clients have of their own; wanted no client"),
        (("method.name=fedper",), 5, "client 5: no such client; there are 0 to 4"),
    ],
)
def test_models_that_are_not_there(
    words: tuple[str, ...], client: int | None, said: str, tmp_path: Path
) -> None:
    path = result(tmp_path, "rounds=1", *words)
    for ask in (
        lambda: fedmpi.model(path, client),
        lambda: kept.export(path, tmp_path / "m.pt", client),
    ):
        with pytest.raises(BadInput, match=f"a.h5: .*{said}"):
            ask()
    assert not (tmp_path / "m.pt").exists()


def test_a_model_is_written_under_a_name_that_tells_its_format(tmp_path: Path) -> None:
    path = result(tmp_path, "rounds=1")
    with pytest.raises(BadInput, match=r"wanted a name that ends in \.safetensors or \.pt"):
        kept.export(path, tmp_path / "m.bin")
    (tmp_path / "m.pt").write_text("another's")
    with pytest.raises(BadInput, match="holds something else than --to writes"):
        kept.export(path, tmp_path / "m.pt")
    with pytest.raises(BadInput, match=r"wanted a model with model\.lora, found no adapter"):
        kept.export(path, tmp_path / "m.safetensors", merged=True)
    for name in ("n.pt", "n.safetensors"):
        kept.export(path, tmp_path / name)
        kept.export(path, tmp_path / name)  # its own is replaced
