"""Transformers against references in numpy's float64 that are written from the papers."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmpi import config, models
from fedmpi.config import ConfigError
from fedmpi.data import Dataset
from fedmpi.datasets import synthetic
from fedmpi.engine import Engine
from fedmpi.messages.codec import Kind
from fedmpi.networks.flat import Flat
from fedmpi.networks.flops import forward
from fedmpi.networks.layers import Dropout
from fedmpi.split.cuts import Crossing
from tests.small import reads, refusal, run, small, text

VIT = ("model.name=vit", "model.width=12", "model.heads=3", "model.depth=2", "model.patch=4")
BERT = ("model.name=bert", "model.width=12", "model.heads=3", "model.depth=2")
CLASSES = 5
IMAGE, TOKENS = (3, 8, 12), 7
Weights = Mapping[str, np.ndarray]


def built(shape: tuple[int, ...], *words: str, classes: int = CLASSES) -> Flat:
    settings = small(*words).model
    return Flat(models.build(settings, shape, classes, 1, reads(settings.name)))


def lively(flat: Flat) -> Tensor:
    """A model without zeros: biases shift, and norms scale."""
    generator = torch.Generator().manual_seed(2)
    return flat.initial + torch.randn(flat.size, generator=generator) / 3


def weights_of(flat: Flat, w: Tensor) -> Weights:
    return {piece.name: piece.of(w).double().numpy() for piece in flat.parameters}


def said(flat: Flat, w: Tensor, x: Tensor) -> np.ndarray:
    return flat.network(w.clone()).train(False)(x).detach().numpy()


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


# ---- Written from the papers


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normed(w: Weights, name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    """J. L. Ba, J. R. Kiros, G. E. Hinton, *Layer Normalization*, arXiv 1607.06450."""
    deviation = np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return w[f"{name}.weight"] * (x - x.mean(-1, keepdims=True)) / deviation + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """X times the probability that a standard normal number is less than x."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(w: Weights, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    """Of one sample's tokens [tokens, width], head by head and token by token."""
    q, k, v = (linear(w, f"{name}.heads.{part}", x) for part in ("query", "key", "value"))
    size, out = q.shape[1] // heads, np.zeros_like(q)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for token in range(len(x)):
            scores = k[:, own] @ q[token, own] / math.sqrt(size)
            share = np.exp(scores - scores.max())
            out[token, own] = (share / share.sum()) @ v[:, own]
    return linear(w, f"{name}.output", out)


def mlp(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return linear(w, f"{name}.output", gelu(linear(w, f"{name}.hidden", x)))


def vit(w: Weights, image: np.ndarray, side: int, heads: int, depth: int) -> np.ndarray:
    """Equations 1 to 4 of Dosovitskiy et al.: logits of one image."""
    channels, height, width = image.shape
    rows = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            patch = image[:, top : top + side, left : left + side].reshape(-1)
            kernel = w["embed.patches.weight"].reshape(-1, channels * side * side)
            rows.append(kernel @ patch + w["embed.patches.bias"])
    is_class = "embed.token.weight" in w
    z = np.array([*w["embed.token.weight"], *rows] if is_class else rows)
    z = z + w["embed.positions.weight"]
    for number in range(1, depth + 1):
        block = f"block{number}"
        z = z + attention(w, f"{block}.attention", normed(w, f"{block}.norm1", z, 1e-6), heads)
        z = z + mlp(w, f"{block}.mlp", normed(w, f"{block}.norm2", z, 1e-6))
    z = normed(w, "head.norm", z, 1e-6)
    return linear(w, "head.classes", z[0] if is_class else z.mean(0))


def bert(
    w: Weights, text: list[int], heads: int, depth: int, pooling: str, separator: int | None
) -> np.ndarray:
    """Logits of one text without padding, after Devlin et al. and their code."""
    types, current = [], 0
    for symbol in text:
        types.append(current)
        current = 1 if symbol == separator else current
    z = w["embed.symbols.weight"][text] + w["embed.positions.weight"][: len(text)]
    z = normed(w, "embed.norm", z + w["embed.types.weight"][types], 1e-12)
    for number in range(1, depth + 1):
        block = f"block{number}"
        z = normed(w, f"{block}.norm1", z + attention(w, f"{block}.attention", z, heads), 1e-12)
        z = normed(w, f"{block}.norm2", z + mlp(w, f"{block}.mlp", z), 1e-12)
    one = z[0] if pooling == "first" else z.mean(0)
    if "head.pooler.weight" in w:
        one = np.tanh(linear(w, "head.pooler", one))
    return linear(w, "head.classes", one)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("shape", [IMAGE, (1, 12, 4)])
def test_the_logits_of_an_image(shape: tuple[int, ...], pooling: str) -> None:
    flat = built(shape, *VIT, f"model.pooling={pooling}", "model.ratio=3", "model.dropout=0.5")
    x, w = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3)), lively(flat)
    wanted = [vit(weights_of(flat, w), image.double().numpy(), 4, 3, 2) for image in x]
    near(said(flat, w, x), np.array(wanted))


PADDED = torch.tensor([[4, 2, 9, 3, 8, 0, 0], [5, 3, 7, 6, 1, 2, 3], [6, 0, 0, 0, 0, 0, 0]])
"""Texts of 5, 7 and 1 symbols; 3 ends the first of two texts, or the second."""
LENGTHS = (5, 7, 1)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("more", [(), ("model.pooler=false",), ("model.separator=3",)], ids=str)
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_the_logits_of_a_text(kind: torch.dtype, more: tuple[str, ...], pooling: str) -> None:
    words = (*BERT, "model.pad=0", "model.vocabulary=10", "model.positions=9", *more)
    flat = built((TOKENS,), *words, f"model.pooling={pooling}")
    w, separator = lively(flat), 3 if "model.separator=3" in more else None
    texts = [text[:length].tolist() for text, length in zip(PADDED, LENGTHS, strict=True)]
    wanted = [bert(weights_of(flat, w), text, 3, 2, pooling, separator) for text in texts]
    near(said(flat, w, PADDED.to(kind)), np.array(wanted))


def test_without_a_pad_every_symbol_is_one_of_the_text() -> None:
    flat = built((TOKENS,), *BERT, "model.vocabulary=10")
    w = lively(flat)
    wanted = [bert(weights_of(flat, w), text.tolist(), 3, 2, "first", None) for text in PADDED]
    near(said(flat, w, PADDED), np.array(wanted))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_text_of_padding_alone_has_finite_logits_and_gradients(pooling: str) -> None:
    """Rows that are stacked fill up short batches with zeros, which are padding here."""
    words = (*BERT, "model.pad=0", f"model.pooling={pooling}", "model.dropout=0")
    flat = built((TOKENS,), *words)
    for is_fused in (False, True):
        network = flat.network(lively(flat))
        for block in (network.block1, network.block2):
            block.attention.heads.is_fused = is_fused
        out = network(torch.zeros(2, TOKENS, dtype=torch.uint8))
        found = torch.autograd.grad(out.square().sum(), list(network.parameters()))
        assert all(g.isfinite().all() for g in (out, *found))


# ---- Sizes


@pytest.mark.parametrize(
    ("shape", "words", "classes", "wanted"),
    [
        ((3, 224, 224), ("model.name=vit", "model.patch=16"), 1000, 5_717_416),
        ((3, 224, 224), ("model.name=vit", "model.patch=16", "model.size=small"), 1000, 22_050_664),
        ((64,), ("model.name=bert",), 2, 4_385_920 + 2 * 129),
        ((64,), ("model.name=bert", "model.size=minilm-l6"), 2, 22_713_216 + 2 * 385),
    ],
)
def test_parameters_are_as_published(
    shape: tuple[int, ...], words: tuple[str, ...], classes: int, wanted: int
) -> None:
    """ViT-Ti and ViT-S of DeiT, BERT-tiny and MiniLM-L6-H384, these with a layer to the classes."""
    published = ("model.vocabulary=30522", "model.positions=512", "model.pad=0")
    more = published if "model.name=bert" in words else ()
    assert built(shape, *words, *more, classes=classes).count == wanted


def test_flops_are_those_by_hand() -> None:
    """Six patches and a class token; products of activations are no layer's."""
    flat = built(IMAGE, *VIT)
    found, tokens, width, hidden = forward(flat, IMAGE), 7, 12, 48
    patches = 2 * 6 * 3 * 16 * width
    block = 2 * tokens * (4 * width * width + 2 * width * hidden)
    products = 4 * width * tokens * tokens
    floats = tokens * width
    blocks = [patches + n * (block + products) for n in range(3)]
    assert [(f.name, f.flops, f.floats) for f in found.fronts] == [
        *(("embed", blocks[0], floats), ("block1", blocks[1], floats)),
        *(("block2", blocks[2], floats), ("head", blocks[2] + 2 * width * CLASSES, CLASSES)),
    ]
    assert found.products == {f"block{n}.attention.heads": products for n in (1, 2)}
    layers = {piece.name: flops for piece, flops in found.layers}
    assert layers["block1.attention.heads.key.weight"] == 2 * tokens * width * width
    assert sum(layers.values()) == found.all - 2 * products


def test_flops_of_a_text_do_not_depend_on_padding() -> None:
    words = (*BERT, "model.vocabulary=9")
    plain, padded = (
        forward(built((TOKENS,), *words, *more), (TOKENS,)) for more in ((), ("model.pad=0",))
    )
    assert plain.all == padded.all
    block = 2 * TOKENS * (4 * 144 + 2 * 12 * 48) + 4 * 12 * TOKENS * TOKENS
    assert plain.all == 2 * block + 2 * 144 + 2 * 12 * CLASSES


# ---- Stages


@pytest.mark.parametrize("words", [VIT, (*BERT, "model.pad=0", "model.vocabulary=10")], ids=str)
def test_a_split_network_is_the_whole_one(words: tuple[str, ...]) -> None:
    """At each split point; padding crosses the cut with the values."""
    shape, x = (TOKENS,), PADDED
    if words is VIT:
        shape, x = IMAGE, torch.randn(3, *IMAGE)
    flat = built(shape, *words)
    w = lively(flat)
    assert flat.cuts() == ["embed", "block1", "block2"]
    for cut in flat.cuts():
        front, back = flat.split(cut)
        values = front.network(w[: front.size]).train(False)(x)
        assert values.shape[2] == 12
        found = back.network(w[front.size :]).train(False)(values)
        assert torch.equal(found, flat.network(w).train(False)(x))


def test_padded_tokens_are_zeros_behind_every_stage() -> None:
    flat = built((TOKENS,), *BERT, "model.pad=0", "model.vocabulary=10")
    network, x = flat.network(lively(flat)).train(False), PADDED
    for stage in list(network)[:-1]:
        x = stage(x)
        assert torch.equal((x != 0).any(2), PADDED != 0)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [((*VIT, "model.dropout=0.2"), 1 + 2 * 3), ((*BERT, "model.dropout=0.1"), 1 + 2 * 2 + 1)],
)
def test_dropouts(words: tuple[str, ...], wanted: int) -> None:
    """As the papers say: behind positions and outputs; in ViT also behind hidden units."""
    shape = IMAGE if words[0] == VIT[0] else (TOKENS,)
    count = [
        sum(isinstance(m, Dropout) for m in built(shape, *words, *more).stages.modules())
        for more in ((), ("model.dropout=0",))
    ]
    assert count == [wanted, 0]


def test_names_of_parameters_are_those_that_the_docstrings_promise() -> None:
    parts = ("attention.heads.query", "attention.heads.key", "attention.heads.value")
    block = {*parts, "attention.output", "mlp.hidden", "mlp.output", "norm1", "norm2"}
    ends: dict[str, set[str]] = {
        "vit": {"embed.patches", "embed.token", "embed.positions", "head.norm", "head.classes"},
        "bert": {f"embed.{n}" for n in ("symbols", "positions", "types", "norm")}
        | {"head.pooler", "head.classes"},
    }
    for words, shape in ((VIT, IMAGE), (BERT, (TOKENS,))):
        name = words[0].partition("=")[2]
        wanted = ends[name] | {f"block{n}.{part}" for n in (1, 2) for part in block}
        pieces = built(shape, *words).parameters
        assert {piece.name.rpartition(".")[0] for piece in pieces} == wanted


# ---- Labelled texts


def labelled(given: Any, seed: int) -> Dataset:
    """In place of `synthetic.load`: 20 symbols in texts with padding, and two classes."""
    random, count = np.random.default_rng(seed), given.samples
    symbols = random.integers(1, 20, size=(count, TOKENS)).astype(np.int32)
    symbols *= np.arange(TOKENS) < random.integers(1, TOKENS + 1, count)[:, None]
    labels = (symbols[:, 0] > 9).astype(np.int64)
    test = given.test_samples
    return Dataset(symbols, labels, symbols[:test], labels[:test], 2, symbols=20)


@pytest.mark.parametrize("words", [(*BERT, "model.pad=0"), ("model.name=rnn", "model.hidden=8")])
def test_texts_may_have_more_symbols_than_classes(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "load", labelled)
    found = run(small(*words, "rounds=1", "clients=2", "data.samples=60"))
    modules = found.engine.flat.stages.modules()
    table = next(module for module in modules if isinstance(module, torch.nn.Embedding))
    assert table.num_embeddings == 20 and found.engine.trainer.feed.classes == 2
    assert found.engine.about_data["symbols"] == 20
    assert np.isfinite(found.model).all()


# ---- Padding at a cut


SPLIT = [m for m in config.names("method") if config.module("method", m).Config.converses]
LOSING = ("fedlite", "splitfc", "splitquant")
"""Methods that quantize activations to numbers other than zero."""


@pytest.mark.parametrize("name", SPLIT)
def test_padding_crosses_the_cut_or_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With whatever the method does to activations, in training."""
    monkeypatch.setattr(synthetic, "load", text)
    few = ("rounds=1", "clients=2", "data.samples=80", "data.test_samples=10")
    words = (*BERT, "model.pad=0", f"method.name={name}", *few)
    if name in LOSING:
        assert "model.pad = 0: wanted a method that sends zeros as zeros" in refusal(*words)
        if name == "fedlite":
            return
        words = (*words, "method.bits=32")
    seen: dict[Crossing, Tensor] = {}
    found: list[bool] = []

    def prepare(engine: Engine) -> None:
        halves: list[Any] = [engine.server, engine.clients]
        if name == "splitft":  # a side for each cut
            halves = [*engine.server.backs.values(), *engine.clients.fronts.values()]
        for half in halves:

            def encode(crossing: Crossing, x: Tensor, known: Any = half.encode) -> Any:
                seen.setdefault(crossing, x.detach().clone())
                return known(crossing, x)

            def decode(crossing: Crossing, blocks: Any, known: Any = half.decode) -> Tensor:
                arrived = known(crossing, blocks)
                if crossing.kind == Kind.ACTIVATION and crossing in seen:
                    padded = (seen[crossing] == 0).all(2)
                    found.append(bool(padded.any()))
                    assert not arrived.view(*padded.shape, -1)[padded].any()
                return arrived

            half.encode, half.decode = encode, decode

    run(small(*words), prepare=prepare)
    assert any(found), "some batch had padding"


# ---- Refused


@pytest.mark.parametrize(
    ("shape", "words", "problem"),
    [
        ((TOKENS, 4), VIT, r"wanted images, found samples of shape \(7, 4\)"),
        ((3, 8, 10), VIT, r"patch = 4: must divide height and width of the images, .* are 8x10"),
        (IMAGE, (*VIT, "model.heads=5"), r"heads = 5: must divide 12, the width"),
        (IMAGE, BERT, r"wanted sequences of symbols, found samples of shape \(3, 8, 12\)"),
        ((TOKENS,), (*BERT, "model.heads=5"), r"heads = 5: must divide 12, the width"),
        ((TOKENS,), (*BERT, "model.vocabulary=4"), r"vocabulary = 4: wanted at least 5, the samp"),
        ((TOKENS,), (*BERT, "model.positions=6"), r"positions = 6: wanted at least 7, a sample's"),
        ((TOKENS,), (*BERT, "model.pad=5"), r"pad = 5: wanted less than 5, the symbols"),
        ((TOKENS,), (*BERT, "model.separator=9"), r"separator = 9: wanted less than 5"),
    ],
)
def test_what_does_not_fit_is_refused(shape: Any, words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        built(shape, *words)
