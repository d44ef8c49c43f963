"""Networks: as many parameters as the papers say, and the same initial ones for the same seed."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from fedmpi import config, models
from fedmpi.config import ConfigError
from fedmpi.flat import Flat
from fedmpi.layers import BatchNorm, Dropout
from tests.small import small

NAMES = config.names("model")
GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def build(shape: tuple[int, ...], *words: str, classes: int = 10, seed: int = 1) -> nn.Sequential:
    return models.build(small(*words).model, shape, classes, seed)


def size(shape: tuple[int, ...], *words: str, classes: int = 10) -> int:
    return Flat(build(shape, *words, classes=classes)).count


@pytest.mark.parametrize(
    ("shape", "words", "wanted"),
    [
        (GREY, ("model.name=cnn",), 1_663_370),
        (GREY, ("model.name=cnn", "model.padding=false"), 582_026),
        (COLOUR, ("model.name=cnn",), 2_156_490),
        (GREY, ("model.name=mlp",), 199_210),
        (GREY, ("model.name=mlp", "model.hidden=[]"), 7_850),
        ((64,), ("model.name=mlp", "model.hidden=[64]"), 4_810),
        (COLOUR, ("model.name=resnet",), 269_722),
        (COLOUR, ("model.name=resnet", "model.norm=batch"), 269_722),
        (COLOUR, ("model.name=resnet", "model.depth=18", "model.groups=32"), 11_173_962),
    ],
)
def test_parameters(shape: tuple[int, ...], words: tuple[str, ...], wanted: int) -> None:
    """1,663,370 and 199,210 are McMahan et al.'s CNN and 2NN; 7,850 is logistic regression."""
    assert size(shape, *words) == wanted


@pytest.mark.parametrize("words", [("model.name=mlp",), ("model.name=cnn",)], ids=" ".join)
def test_dropout_is_behind_hidden_layers(words: tuple[str, ...]) -> None:
    with_, without = (build(GREY, *words, f"model.dropout={share}") for share in (0.25, 0.0))
    found = [module for module in with_.modules() if isinstance(module, Dropout)]
    assert [module.number for module in found] == list(range(2 if "mlp" in words[0] else 1))
    assert {module.share for module in found} == {0.25}
    assert not any(isinstance(module, Dropout) for module in without.modules())
    assert torch.equal(Flat(with_).initial, Flat(without).initial)


def test_batch_norm_is_where_group_norm_was() -> None:
    group, batch = (
        build(COLOUR, "model.name=resnet", f"model.norm={n}") for n in ("group", "batch")
    )
    kinds = [[type(m) for m in network.modules()] for network in (group, batch)]
    assert [BatchNorm if kind is nn.GroupNorm else kind for kind in kinds[0]] == kinds[1]
    assert Flat(batch).size == 269_722 + 2 * 688, "two statistics for each channel of a norm"


def test_a_model_with_torchs_batch_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = config.module("model", "mlp")
    monkeypatch.setattr(module, "stages", lambda *_: OrderedDict(norm=nn.BatchNorm1d(4)))
    with pytest.raises(ConfigError, match=r"'norm' is torch's BatchNorm1d.*fedmpi\.layers"):
        build(GREY, "model.name=mlp")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 10, 62])
def test_outputs_are_one_number_a_class(name: str, classes: int) -> None:
    network = build(GREY, f"model.name={name}", classes=classes)
    assert network(torch.zeros(3, *GREY)).shape == (3, classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_is_all_that_matters(name: str) -> None:
    words = (f"model.name={name}",)
    torch.manual_seed(1)
    first = Flat(build(GREY, *words)).initial
    torch.manual_seed(2)
    torch.rand(7)
    state = torch.get_rng_state()
    again = Flat(build(GREY, *words)).initial
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left alone"
    other = Flat(build(GREY, *words, seed=2)).initial
    assert not torch.equal(first, other)
    assert (first != other).float().mean() > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_initial_parameters_are_finite_and_not_zero(name: str) -> None:
    initial = Flat(build(GREY, f"model.name={name}")).initial
    assert initial.isfinite().all()
    assert 0 < initial.std() < 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("model.name=cnn",), ["conv1", "conv2", "dense", "head"]),
        (("model.name=mlp", "model.hidden=[9,8]"), ["hidden1", "hidden2", "head"]),
        (("model.name=mlp", "model.hidden=[]"), ["head"]),
    ],
)
def test_stages_have_names(words: tuple[str, ...], wanted: list[str]) -> None:
    network = build(GREY, *words)
    assert [name for name, _ in network.named_children()] == wanted
    assert Flat(network).cuts() == wanted[:-1]


@pytest.mark.parametrize(
    ("kernel", "padding", "least"), [(5, False, 16), (3, False, 10), (5, True, 4), (1, False, 4)]
)
def test_images_can_be_too_small(kernel: int, padding: bool, least: int) -> None:
    """`least` is the smallest side of which a pixel is left; one less is an error that helps."""
    words = (
        "model.name=cnn",
        "model.channels=[2,3]",
        f"model.kernel={kernel}",
        f"model.padding={str(padding).lower()}",
    )
    assert size((1, least, least), *words) > 0
    for shape in ((1, least - 1, least), (1, least, least - 1), (1, 1, 1)):
        with pytest.raises(ConfigError, match=rf"model\.kernel = {kernel}: nothing is left of"):
            build(shape, *words)


@pytest.mark.parametrize("shape", [(784,), (28, 28), (1, 1, 28, 28)])
def test_convolutions_want_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="wanted images"):
        build(shape, "model.name=cnn")


def test_perceptrons_take_any_shape() -> None:
    assert size((784,), "model.name=mlp") == size(GREY, "model.name=mlp") == 199_210
    assert size((2, 3, 4, 5), "model.name=mlp", "model.hidden=[]") == 1210


@pytest.mark.parametrize("padding", ["true", "false"])
@pytest.mark.parametrize(
    ("shape", "kernel"), [((3, 16, 23), 5), ((1, 13, 17), 3), ((2, 9, 31), 2), ((1, 4, 4), 1)]
)
def test_convolutions_fit_images_of_any_shape(
    shape: tuple[int, ...], kernel: int, padding: str
) -> None:
    words = ("model.channels=[2,3]", "model.hidden=5", f"model.padding={padding}")
    network = build(shape, "model.name=cnn", f"model.kernel={kernel}", *words)
    assert network(torch.zeros(2, *shape)).shape == (2, 10)
