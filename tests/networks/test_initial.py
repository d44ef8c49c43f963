"""Initial weights from files of our names and torchvision's, and from results."""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi import models, weights
from fedmpi.config import ConfigError
from fedmpi.errors import BadInput
from fedmpi.networks import initial
from fedmpi.results import kept
from fedmpi.runs import launch
from fedmpi.runs.job import Job
from tests.small import refusal, run, small


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv(launch.PROGRESS, "0")


def build(*words: str, shape: tuple[int, ...] = (1, 8, 8)) -> nn.Sequential:
    return models.build(small(*words).model, shape, 10, 1)


def drawn(network: nn.Module) -> dict[str, np.ndarray]:
    """Tensors of a network's names and shapes, with values of their own."""
    random = np.random.default_rng(3)
    tensors = initial.tensors(network)
    return {name: random.uniform(0.1, 1, one.shape).astype("f4") for name, one in tensors}


def file(folder: Path, tensors: dict[str, np.ndarray]) -> str:
    path = folder / "given.safetensors"
    path.write_bytes(weights.written(tensors, {}))
    return f"model.initial={path}"


CNN = ("model.name=cnn", "model.channels=[3,4]", "model.kernel=3", "model.norm=batch")


def test_a_run_begins_with_the_weights_of_the_file(tmp_path: Path) -> None:
    """Parameters and statistics; what is fresh is drawn as without a file."""
    given, before = drawn(build(*CNN)), dict(initial.tensors(build(*CNN)))
    found = dict(initial.tensors(build(*CNN, file(tmp_path, given), "model.fresh=[dense,head]")))
    assert {"conv1.1.running_mean", "conv2.0.weight", "head.bias"} <= given.keys() == found.keys()
    for name, tensor in found.items():
        is_fresh = name.startswith(("dense.", "head."))
        wanted = before[name] if is_fresh else torch.from_numpy(given[name])
        assert torch.equal(tensor, wanted), name


def test_a_run_begins_with_the_model_that_a_result_keeps(tmp_path: Path) -> None:
    """It has the tensors of the file that is made of it, and another identity."""
    Job().run(small(*CNN), tmp_path / "a.h5")
    kept.export(tmp_path / "a.h5", tmp_path / "a.safetensors")
    of_result, of_file = (
        small(*CNN, f"model.initial={tmp_path / name}") for name in ("a.h5", "a.safetensors")
    )
    one, same = run(of_result), run(of_file)
    assert one.sha256 == same.sha256
    assert of_result.identity() != of_file.identity()
    given = kept.read(tmp_path / "a.h5").model
    built_of = dict(initial.tensors(models.build(of_result.model, (1, 8, 8), 10, 1)))
    assert given.keys() == built_of.keys()
    for name, tensor in built_of.items():
        np.testing.assert_array_equal(tensor.detach().numpy(), given[name])


def test_a_result_without_a_model_is_refused(tmp_path: Path) -> None:
    Job().run(small("keep=none"), tmp_path / "a.h5")
    with pytest.raises(BadInput, match="found one without a model; a finished run with keep"):
        build(f"model.initial={tmp_path / 'a.h5'}")
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=r"or a result, found another one, or a damaged one$"):
        build(f"model.initial={tmp_path / 'a.h5'}")


def test_training_begins_there_and_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    words = ("rounds=1", file(tmp_path, drawn(build())))
    before = (tmp_path / "given.safetensors").read_bytes()
    found = run(small(*words, "lr=1e-30"))
    np.testing.assert_array_equal(
        found.model, np.concatenate([one.reshape(-1) for one in drawn(build()).values()])
    )
    run(small(*words))
    assert (tmp_path / "given.safetensors").read_bytes() == before


def test_the_content_of_the_file_and_not_its_path_is_in_the_identity(tmp_path: Path) -> None:
    given = drawn(build())
    (tmp_path / "b").mkdir()
    here, there = file(tmp_path, given), file(tmp_path / "b", given)
    one, same = (small(word).identity() for word in (here, there))
    given["head.1.bias"] = given["head.1.bias"] + 1
    other = small(file(tmp_path, given)).identity()
    assert one == same != other
    assert small().identity() not in (one, other)


def test_each_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    given = drawn(build())
    del given["hidden2.1.weight"]
    given["head.1.weight"] = np.zeros((7, 8), "f4")
    given["pooler"] = np.zeros(2, "f4")
    with pytest.raises(ConfigError) as error:
        build(file(tmp_path, given))
    assert [problem.partition(": ")[2] for problem in error.value.problems] == [
        "it has no tensor 'hidden2.1.weight', wanted 8x12",
        "'head.1.weight' is 7x8, wanted 10x8",
        "'pooler' is no tensor of the model; possible is a file of this model, or model.fresh for "
        "what is missing or differs",
    ]
    del given["pooler"]
    build(file(tmp_path, given), "model.fresh=[hidden2,head.1.weight]")
    assert "no weights of the name 'hidden3'" in refusal(
        file(tmp_path, given), "model.fresh=hidden3"
    )


def test_many_problems_are_counted(tmp_path: Path) -> None:
    extra = {f"more{i}": np.zeros(1, "f4") for i in range(40)}
    with pytest.raises(ConfigError) as error:
        build(file(tmp_path, drawn(build()) | extra))
    assert len(error.value.problems) == initial.SAID + 1
    assert "so are 20 more" in error.value.problems[-1]


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^model\.initial = /nowhere/a: .*; wanted a file of weigh"):
        build("model.initial=/nowhere/a")


class Basic(nn.Module):
    """Torchvision's BasicBlock, by its names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if inputs != outputs or stride != 1:
            short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Bottle(nn.Module):
    """Torchvision's Bottleneck, by its names."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module | None = None
        if inputs != 4 * width or stride != 1:
            short = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def torchvision(depth: int, width: int) -> nn.Sequential:
    """A ResNet for small images with torchvision's names: a 3x3 stem, no pooling behind it."""
    kind, blocks, more = (Basic, (2, 2, 2, 2), 1) if depth == 18 else (Bottle, (3, 4, 6, 3), 4)
    found: OrderedDict[str, nn.Module] = OrderedDict()
    found["conv1"] = nn.Conv2d(1, width, 3, 1, 1, bias=False)
    found["bn1"], found["relu"] = nn.BatchNorm2d(width), nn.ReLU()
    inputs = width
    for group, count in enumerate(blocks):
        layer = nn.Sequential()
        for number in range(count):
            stride = 2 if group and not number else 1
            layer.append(kind(inputs, width << group, stride))
            inputs = (width << group) * more
        found[f"layer{group + 1}"] = layer
    found["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found["fc"] = nn.Linear(inputs, 10)
    return nn.Sequential(found)


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvisions_resnets_compute_the_same_here(tmp_path: Path, depth: int) -> None:
    torch.manual_seed(0)
    theirs = torchvision(depth, 4).eval()
    given = drawn(theirs)
    with torch.no_grad():
        for name, tensor in initial.tensors(theirs):
            tensor.copy_(torch.from_numpy(given[name]) - 0.5 * ("running" not in name))
    given = {name: one.detach().numpy() for name, one in initial.tensors(theirs)}
    words = ("model.name=resnet", f"model.depth={depth}", "model.width=4", "model.norm=batch")
    ours = build(*words, file(tmp_path, given), shape=(1, 16, 16)).eval()
    x = torch.randn(3, 1, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
