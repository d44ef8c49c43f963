"""Networks: as many parameters as the papers say, and the same initial ones for the same seed."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from fedmpi import config, models
from fedmpi.config import ConfigError
from fedmpi.networks.flat import Flat
from fedmpi.networks.flops import forward
from fedmpi.networks.layers import BatchNorm, Dropout
from tests.small import reads, small

NAMES = config.names("model")
GREY, COLOUR, WINDOW, TEXT = (1, 28, 28), (3, 32, 32), (6, 128), (80,)
FITS = {"cnn1d": WINDOW, "vgg": COLOUR, "rnn": TEXT, "bert": TEXT}
"""Shapes of samples for the models that do not fit 1x28x28 images."""
VGG19 = ("model.name=vgg", "model.depth=19", "model.norm=batch", "model.hidden=[]")


def build(shape: tuple[int, ...], *words: str, classes: int = 10, seed: int = 1) -> nn.Sequential:
    settings = small(*words).model
    return models.build(settings, shape, classes, seed, reads(settings.name))


def size(shape: tuple[int, ...], *words: str, classes: int = 10) -> int:
    return Flat(build(shape, *words, classes=classes)).count


@pytest.mark.parametrize(
    ("shape", "words", "wanted"),
    [
        (GREY, ("model.name=cnn",), 1_663_370),
        (GREY, ("model.name=cnn", "model.padding=false"), 582_026),
        (COLOUR, ("model.name=cnn",), 2_156_490),
        (COLOUR, ("model.name=cnn", "model.norm=group"), 2_156_682),
        (COLOUR, ("model.name=cnn", "model.norm=batch"), 2_156_682),
        (GREY, ("model.name=mlp",), 199_210),
        (GREY, ("model.name=mlp", "model.hidden=[]"), 7_850),
        ((64,), ("model.name=mlp", "model.hidden=[64]"), 4_810),
        (COLOUR, ("model.name=resnet",), 269_722),
        (COLOUR, ("model.name=resnet", "model.norm=batch"), 269_722),
        (COLOUR, ("model.name=resnet", "model.norm=static"), 269_722),
        (COLOUR, ("model.name=resnet", "model.depth=8"), 75_290),
        (COLOUR, ("model.name=resnet", "model.depth=14"), 172_506),
        (COLOUR, ("model.name=resnet", "model.depth=8", "model.width=8"), 19_218),
        (COLOUR, ("model.name=resnet", "model.depth=32"), 464_154),
        (COLOUR, ("model.name=resnet", "model.depth=18", "model.groups=32"), 11_173_962),
        (COLOUR, ("model.name=resnet", "model.depth=50", "model.groups=32"), 23_520_842),
        (COLOUR, ("model.name=lenet",), 62_006),
        (GREY, ("model.name=lenet",), 44_426),
        (COLOUR, ("model.name=vgg",), 9_750_922),
        (COLOUR, VGG19, 20_040_522),
        (COLOUR, (*VGG19, "model.norm=static"), 20_040_522),
        (COLOUR, (*VGG19, "model.norm=group"), 20_040_522),
    ],
)
def test_parameters(shape: tuple[int, ...], words: tuple[str, ...], wanted: int) -> None:
    """1,663,370 and 199,210 are McMahan et al.'s CNN and 2NN; 7,850 is logistic regression.

    The others follow from the layers in the released code: 62,006 and 9,750,922 are the simple-cnn
    and the VGG-11 of NIID-Bench and SPATL, 11,173,962 is SSFL's ResNet-18.
    """
    assert size(shape, *words) == wanted


def test_the_parameters_of_windows() -> None:
    """196 channels of 16 steps, pooled from 113 steps to 28, and 1024 units; six classes."""
    wanted = (6 * 16 + 1) * 196 + (196 * 28 + 1) * 1024 + (1024 + 1) * 6
    assert size(WINDOW, "model.name=cnn1d", classes=6) == wanted == 5_645_898


@pytest.mark.parametrize(
    ("words", "symbols", "wanted"),
    [((), 80, 819_920), ((), 90, 822_570), (("model.cell=gru", "model.layers=1"), 80, 225_488)],
    ids=str,
)
def test_the_parameters_of_characters(words: tuple[str, ...], symbols: int, wanted: int) -> None:
    """An embedding, gates with two biases each, and a linear layer; 80 characters are LEAF's."""
    gates, layers = (3, 1) if words else (4, 2)
    inputs = [8, 256][:layers]
    cells = sum(gates * 256 * (width + 256 + 2) for width in inputs)
    assert size(TEXT, "model.name=rnn", *words, classes=symbols) == wanted
    assert wanted == 8 * symbols + cells + (256 + 1) * symbols


def test_leafs_network_has_one_bias_a_gate() -> None:
    network = build(TEXT, "model.name=rnn", classes=80)
    second = sum(p.numel() for n, p in network.named_parameters() if n.endswith("recurrent.bias"))
    assert Flat(network).count - second == 817_872


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3)])
def test_the_split_points_of_characters(cell: str, gates: int) -> None:
    """A cut between recurrent layers carries all steps, one behind them the last."""
    network = build(TEXT, "model.name=rnn", f"model.cell={cell}", classes=80)
    products = [gates * 256 * (8 + 256), gates * 256 * (256 + 256)]
    first, second, whole = forward(Flat(network), TEXT).fronts
    assert (first.name, first.floats) == ("recurrent1", 80 * 256)
    assert (second.name, second.floats) == ("recurrent2", 256)
    assert (whole.name, whole.floats) == ("head", 80)
    assert first.parameters == 80 * 8 + products[0] + 2 * gates * 256
    assert first.flops == 2 * 80 * products[0]
    assert second.flops == 2 * 80 * sum(products)
    assert whole.flops == second.flops + 2 * 256 * 80


def test_symbols_of_any_type_are_the_same() -> None:
    network = build(TEXT, "model.name=rnn", "model.hidden=6", classes=80)
    x = torch.randint(80, (3, 80))
    for kind in (torch.uint8, torch.int32):
        assert torch.equal(network(x), network(x.to(kind)))
    later = x.clone()
    later[:, -1] = (x[:, -1] + 1) % 80
    assert (network(later) != network(x)).all(), "the last symbol counts"
    later[:, 0] = (x[:, 0] + 1) % 80
    assert (network(later) != network(x)).any(1).all(), "and so does the first"


@pytest.mark.parametrize("shape", [GREY, WINDOW])
def test_characters_come_in_sequences(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"wanted sequences of symbols, found samples of shape"):
        build(shape, "model.name=rnn")


@pytest.mark.parametrize("name", NAMES)
def test_models_of_numbers_and_of_symbols(name: str) -> None:
    ours, shape = reads(name), FITS.get(name, GREY)
    other = {"numbers": "symbols", "symbols": "numbers"}[ours]
    possible = [model for model in NAMES if reads(model) == other]
    with pytest.raises(ConfigError) as error:
        models.build(small(f"model.name={name}").model, shape, 10, 1, other)
    assert str(error.value) == (
        f"model.name = '{name}': wanted samples of {ours}, found samples of {other}; "
        f"models for those are: {', '.join(possible)}"
    )


def test_the_split_points_of_vgg19() -> None:
    """Behind the pooling of each block: parameters, and floats of a sample (FedSL)."""
    found = {front.name: front for front in forward(Flat(build(COLOUR, *VGG19)), COLOUR).fronts}
    wanted = {
        "conv2": (38_976, 16_384),
        "conv4": (260_928, 8_192),
        "conv8": (2_328_384, 4_096),
        "conv12": (10_592_064, 2_048),
        "conv16": (20_035_392, 512),
    }
    assert {n: (found[n].parameters, found[n].floats) for n in wanted} == wanted
    assert list(found) == [*(f"conv{i}" for i in range(1, 17)), "head"]


@pytest.mark.parametrize(
    ("words", "cut", "wanted"),
    [(("model.name=lenet",), "conv2", 2_872), (("model.name=vgg",), "conv8", 9_220_480)],
    ids=["simple-cnn", "vgg11"],
)
def test_the_encoders_of_spatl(words: tuple[str, ...], cut: str, wanted: int) -> None:
    front, _ = Flat(build(COLOUR, *words)).split(cut)
    assert front.count == wanted


@pytest.mark.parametrize("words", [(), ("model.norm=batch",), ("model.norm=static",)], ids=str)
def test_fronts_are_what_is_split(words: tuple[str, ...]) -> None:
    """And FLOPs are two for each weight of a convolution at each pixel, as SSFL counts them."""
    network = build(COLOUR, "model.name=resnet", *words)
    before = Flat(network).initial
    found = forward(Flat(network), COLOUR).fronts
    assert network.training and torch.equal(Flat(network).initial, before), "nothing is changed"
    for front in found[:-1]:
        part = Flat(network).split(front.name)[0]
        assert front.parameters == part.count
        assert front.floats == part.stages(torch.zeros(2, *COLOUR))[0].numel()
    assert (found[-1].name, found[-1].parameters, found[-1].floats) == ("head", 269_722, 10)

    stem, blocks = 3 * 16 * 9 * 32 * 32, []
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        weights = 6 * channels * channels * 9 - (channels // 2 * channels * 9) * (channels > 16)
        blocks.append(weights * side * side)
    assert found[0].flops == 2 * stem
    assert found[-1].flops == 2 * (stem + sum(blocks) + 64 * 10) == 81_102_080


@pytest.mark.parametrize("words", [("model.name=mlp",), ("model.name=cnn",)], ids=" ".join)
def test_dropout_is_behind_hidden_layers(words: tuple[str, ...]) -> None:
    with_, without = (build(GREY, *words, f"model.dropout={share}") for share in (0.25, 0.0))
    found = [module for module in with_.modules() if isinstance(module, Dropout)]
    assert [module.number for module in found] == list(range(2 if "mlp" in words[0] else 1))
    assert {module.share for module in found} == {0.25}
    assert not any(isinstance(module, Dropout) for module in without.modules())
    assert torch.equal(Flat(with_).initial, Flat(without).initial)


def test_batch_norm_is_where_group_norm_was() -> None:
    group, batch, static = (
        build(COLOUR, "model.name=resnet", f"model.norm={n}") for n in ("group", "batch", "static")
    )
    kinds = [[type(m) for m in network.modules()] for network in (group, batch, static)]
    assert [BatchNorm if kind is nn.GroupNorm else kind for kind in kinds[0]] == kinds[1]
    assert kinds[1] == kinds[2]
    assert Flat(batch).size == 269_722 + 2 * 688, "two statistics for each channel of a norm"
    assert Flat(static).size == 269_722, "and none"


def test_a_norm_is_behind_each_convolution() -> None:
    for norm, kind in (("group", nn.GroupNorm), ("batch", BatchNorm), ("static", BatchNorm)):
        network = build(COLOUR, "model.name=vgg", f"model.norm={norm}")
        kinds = [type(module) for module in network.conv2]
        assert kinds == [nn.Conv2d, kind, nn.ReLU, nn.MaxPool2d]
        assert [type(module) for module in network.conv3] == [nn.Conv2d, kind, nn.ReLU]
        network = build(COLOUR, "model.name=cnn", f"model.norm={norm}")
        kinds = [type(module) for module in network.conv2]
        assert kinds == [nn.Conv2d, kind, nn.ReLU, nn.MaxPool2d]
    statistics = Flat(build(COLOUR, *VGG19)).size - 20_040_522
    assert statistics == 2 * (2 * 64 + 2 * 128 + 4 * 256 + 8 * 512)


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet", "16"), ("vgg", "64"), ("cnn", "32 and 64")]
)
def test_groups_divide_channels(name: str, channels: str) -> None:
    wanted = rf"model\.groups = 5: must divide {channels}, the channels"
    with pytest.raises(ConfigError, match=wanted):
        build(COLOUR, f"model.name={name}", "model.norm=group", "model.groups=5")


def test_a_model_with_torchs_batch_norm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = config.module("model", "mlp")
    monkeypatch.setattr(module, "stages", lambda *_: OrderedDict(norm=nn.BatchNorm1d(4)))
    with pytest.raises(ConfigError, match=r"'norm' is torch's BatchNorm1d.*fedmpi.networks.layers"):
        build(GREY, "model.name=mlp")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 10, 62])
def test_outputs_are_one_number_a_class(name: str, classes: int) -> None:
    shape = FITS.get(name, GREY)
    network = build(shape, f"model.name={name}", classes=classes)
    assert network(torch.zeros(3, *shape)).shape == (3, classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_is_all_that_matters(name: str) -> None:
    words, shape = (f"model.name={name}",), FITS.get(name, GREY)
    torch.manual_seed(1)
    first = Flat(build(shape, *words)).initial
    torch.manual_seed(2)
    torch.rand(7)
    state = torch.get_rng_state()
    again = Flat(build(shape, *words)).initial
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left alone"
    other = Flat(build(shape, *words, seed=2)).initial
    assert not torch.equal(first, other)
    assert (first != other).float().mean() > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_initial_parameters_are_finite_and_not_zero(name: str) -> None:
    initial = Flat(build(FITS.get(name, GREY), f"model.name={name}")).initial
    assert initial.isfinite().all()
    assert 0 < initial.std() < 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("model.name=cnn",), ["conv1", "conv2", "dense", "head"]),
        (("model.name=lenet",), ["conv1", "conv2", "dense1", "dense2", "head"]),
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


@pytest.mark.parametrize(("name", "least"), [("lenet", 16), ("vgg", 32)])
def test_images_of_a_least_size(name: str, least: int) -> None:
    words = (f"model.name={name}", "model.hidden=[3,2]")
    assert build((2, least, least + 1), *words)(torch.zeros(1, 2, least, least + 1)).numel() == 10
    pattern = (
        rf"model\.name = '{name}': wanted images of at least {least}x{least} pixels, found samp"
    )
    for shape in ((2, least - 1, least), (2, least, least - 1), (784,), (6, 128), (1, 1, 40, 40)):
        with pytest.raises(ConfigError, match=pattern):
            build(shape, *words)


def test_vgg_takes_larger_images() -> None:
    """What is left of 64x96 pixels are 2x3, each with 512 channels."""
    assert size((3, 64, 96), "model.name=vgg", "model.hidden=[]") == 9_220_480 + (6 * 512 + 1) * 10


def test_windows_can_be_too_short() -> None:
    words = ("model.name=cnn1d", "model.channels=[4,5]", "model.kernel=8", "model.pool=2")
    least = ((1 * 2 + 7) * 2) + 7
    assert build((3, least), *words)(torch.zeros(2, 3, least)).shape == (2, 10)
    for steps in (least - 1, 7, 1):
        with pytest.raises(
            ConfigError, match=rf"= 8: nothing is left of {steps} steps behind 2 con"
        ):
            build((3, steps), *words)
    for shape in ((128,), GREY):
        with pytest.raises(
            ConfigError, match=r"wanted windows of shape \(channels, steps\), found"
        ):
            build(shape, *words)
    assert Flat(build((3, 64), *words)).cuts() == ["conv1", "conv2", "dense"]


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
