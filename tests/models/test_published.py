"""Published layouts of transformers as initial weights: logits by the layouts' own names."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi import config, models, weights
from fedmpi.config import ConfigError
from tests.small import small

WIDTH, HIDDEN, HEADS, DEPTH, CLASSES = 12, 48, 3, 2, 5
SHAPE, PATCH, TOKENS, SYMBOLS, PLACES = (3, 8, 12), 4, 7, 10, 9
VIT = ("model.name=vit", "model.width=12", "model.heads=3", "model.depth=2", "model.patch=4")
BERT = (
    *("model.name=bert", "model.width=12", "model.heads=3", "model.depth=2", "model.pad=0"),
    *("model.vocabulary=10", "model.positions=9", "model.separator=3"),
)
Weights = Mapping[str, Tensor]


# ---- Tensors of the layouts, by name and shape


def pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def hugging(kind: str) -> dict[str, tuple[int, ...]]:
    """Hugging Face's encoders; of a block, BERT's and ViT's differ in the names of three parts."""
    found: dict[str, tuple[int, ...]] = {}
    own = "attention" if kind == "vit" else "self"
    for number in range(DEPTH):
        block = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            found |= pair(f"{block}.attention.{own}.{part}", WIDTH, WIDTH)
        found |= pair(f"{block}.attention.output.dense", WIDTH, WIDTH)
        found |= pair(f"{block}.intermediate.dense", HIDDEN, WIDTH)
        found |= pair(f"{block}.output.dense", WIDTH, HIDDEN)
        norms = (
            ("layernorm_before", "layernorm_after")
            if kind == "vit"
            else ("attention.output.LayerNorm", "output.LayerNorm")
        )
        for norm in norms:
            found |= pair(f"{block}.{norm}", WIDTH)
    if kind == "vit":
        found |= {"embeddings.cls_token": (1, 1, WIDTH)}
        found |= {"embeddings.position_embeddings": (1, TOKENS, WIDTH)}
        found |= pair("embeddings.patch_embeddings.projection", WIDTH, SHAPE[0], PATCH, PATCH)
        return found | pair("layernorm", WIDTH)
    for name, count in (("word", SYMBOLS), ("position", PLACES), ("token_type", 2)):
        found[f"embeddings.{name}_embeddings.weight"] = (count, WIDTH)
    return found | pair("embeddings.LayerNorm", WIDTH) | pair("pooler.dense", WIDTH, WIDTH)


def timm() -> dict[str, tuple[int, ...]]:
    """The ViT of timm and of DeiT's code, with queries, keys and values in one matrix."""
    found: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, WIDTH)}
    found |= {"pos_embed": (1, TOKENS, WIDTH)}
    found |= pair("patch_embed.proj", WIDTH, SHAPE[0], PATCH, PATCH)
    for number in range(DEPTH):
        found |= pair(f"blocks.{number}.attn.qkv", 3 * WIDTH, WIDTH)
        found |= pair(f"blocks.{number}.attn.proj", WIDTH, WIDTH)
        found |= pair(f"blocks.{number}.mlp.fc1", HIDDEN, WIDTH)
        found |= pair(f"blocks.{number}.mlp.fc2", WIDTH, HIDDEN)
        found |= pair(f"blocks.{number}.norm1", WIDTH) | pair(f"blocks.{number}.norm2", WIDTH)
    return found | pair("norm", WIDTH) | pair("head", CLASSES, WIDTH)


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {n: torch.randn(s, generator=generator, dtype=torch.double) for n, s in shapes.items()}


# ---- What the layouts' models compute


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(w: Weights, name: str, x: Tensor, epsilon: float) -> Tensor:
    return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], epsilon)


def mixed(query: Tensor, key: Tensor, value: Tensor, is_key: Tensor | None = None) -> Tensor:
    """Attention of [B, tokens, WIDTH] each."""
    q, k, v = (one.unflatten(2, (HEADS, -1)).transpose(1, 2) for one in (query, key, value))
    scores = q @ k.mT / (WIDTH // HEADS) ** 0.5
    if is_key is not None:
        scores = scores.masked_fill(~is_key[:, None, None], -torch.inf)
    return (scores.softmax(3) @ v).transpose(1, 2).flatten(2)


def by_hugging_vit(w: Weights, x: Tensor) -> Tensor:
    name = "embeddings.patch_embeddings.projection"
    z = F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], PATCH).flatten(2).mT
    z = torch.cat([w["embeddings.cls_token"].expand(len(x), -1, -1), z], 1)
    z = z + w["embeddings.position_embeddings"]
    for number in range(DEPTH):
        block = f"encoder.layer.{number}"
        y = norm(w, f"{block}.layernorm_before", z, 1e-6)
        parts = (
            linear(w, f"{block}.attention.attention.{p}", y) for p in ("query", "key", "value")
        )
        z = z + linear(w, f"{block}.attention.output.dense", mixed(*parts))
        y = linear(w, f"{block}.intermediate.dense", norm(w, f"{block}.layernorm_after", z, 1e-6))
        z = z + linear(w, f"{block}.output.dense", F.gelu(y))
    return linear(w, "classifier", norm(w, "layernorm", z, 1e-6)[:, 0])


def by_timm(w: Weights, x: Tensor) -> Tensor:
    z = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], PATCH).flatten(2).mT
    z = torch.cat([w["cls_token"].expand(len(x), -1, -1), z], 1) + w["pos_embed"]
    for number in range(DEPTH):
        block = f"blocks.{number}"
        parts = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", z, 1e-6)).chunk(3, 2)
        z = z + linear(w, f"{block}.attn.proj", mixed(*parts))
        y = linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", z, 1e-6))
        z = z + linear(w, f"{block}.mlp.fc2", F.gelu(y))
    return linear(w, "head", norm(w, "norm", z, 1e-6)[:, 0])


def by_bert(w: Weights, x: Tensor) -> Tensor:
    words, places, types = (
        w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    second = torch.tensor([[3 in text[:place] for place in range(x.shape[1])] for text in x])
    z = words[x] + places[: x.shape[1]] + types[second.long()]
    z = norm(w, "embeddings.LayerNorm", z, 1e-12)
    for number in range(DEPTH):
        block = f"encoder.layer.{number}"
        parts = (linear(w, f"{block}.attention.self.{p}", z) for p in ("query", "key", "value"))
        y = linear(w, f"{block}.attention.output.dense", mixed(*parts, x != 0))
        z = norm(w, f"{block}.attention.output.LayerNorm", z + y, 1e-12)
        y = F.gelu(linear(w, f"{block}.intermediate.dense", z))
        z = norm(w, f"{block}.output.LayerNorm", z + linear(w, f"{block}.output.dense", y), 1e-12)
    return linear(w, "classifier", linear(w, "pooler.dense", z[:, 0]).tanh())


# ---- Read


def rooted(w: Weights, root: str, but: str = "classifier") -> dict[str, Tensor]:
    """The names within a model for a task."""
    return {name if name.startswith(but) else f"{root}.{name}": one for name, one in w.items()}


def file(folder: Path, w: Weights) -> str:
    path = folder / "given.safetensors"
    path.write_bytes(weights.written({name: one.numpy() for name, one in w.items()}, {}))
    return f"model.initial={path}"


def built(*words: str) -> nn.Sequential:
    settings = small(*words).model
    is_vit = settings.name == "vit"
    shape, kind = (SHAPE, "numbers") if is_vit else ((TOKENS,), "symbols")
    return models.build(settings, shape, CLASSES, 1, kind).eval()


TEXTS = torch.tensor([[4, 2, 9, 3, 8, 0, 0], [5, 3, 7, 6, 1, 2, 4], [6, 0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("root", ["", "vit", "deit"])
def test_a_vit_of_hugging_face(tmp_path: Path, root: str) -> None:
    w = drawn(hugging("vit") | pair("classifier", CLASSES, WIDTH))
    network = built(*VIT, file(tmp_path, rooted(w, root) if root else w))
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    wanted = by_hugging_vit(w, x.double()).float()
    torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)


def test_a_vit_of_timm_whose_queries_keys_and_values_are_one_matrix(tmp_path: Path) -> None:
    w = drawn(timm())
    network = built(*VIT, file(tmp_path, w))
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(x), by_timm(w, x.double()).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("root", ["", "bert"])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_bert_of_hugging_face(tmp_path: Path, root: str, is_old: bool) -> None:
    """Older files say gamma and beta for a norm's weight and bias."""
    w = drawn(hugging("bert") | pair("classifier", CLASSES, WIDTH))
    given = rooted(w, root) if root else dict(w)
    if is_old:
        for new, old in ((".weight", ".gamma"), (".bias", ".beta")):
            given = {n.replace(f"LayerNorm{new}", f"LayerNorm{old}"): v for n, v in given.items()}
    network = built(*BERT, file(tmp_path, given))
    torch.testing.assert_close(network(TEXTS), by_bert(w, TEXTS).float(), rtol=1e-4, atol=1e-4)


def test_heads_of_other_tasks_are_left_out(tmp_path: Path) -> None:
    """An encoder without classes gets them from the seed; what else it was trained for is not."""
    more = pair("cls.predictions.decoder", SYMBOLS, WIDTH) | pair("cls.seq_relationship", 2, WIDTH)
    w = drawn(hugging("bert") | more)
    word = file(tmp_path, rooted(w, "bert", "cls"))
    network = built(*BERT, word, "model.fresh=head.classes")
    fresh = built(*BERT).head.classes
    assert torch.equal(network.head.classes.weight, fresh.weight)
    assert torch.equal(network.head.pooler.weight, w["pooler.dense.weight"].float())
    without = built(*BERT, word, "model.fresh=head", "model.pooler=false")
    assert torch.equal(without.embed.norm.bias, w["embeddings.LayerNorm.bias"].float())
    w = drawn(hugging("vit") | pair("pooler.dense", WIDTH, WIDTH))
    network = built(*VIT, file(tmp_path, w), "model.fresh=head.classes")
    assert torch.equal(network.head.norm.weight, w["layernorm.weight"].float())


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        built(*words)
    return [
        problem.partition(": ")[2].partition("; possible")[0] for problem in error.value.problems
    ]


def test_each_tensor_that_does_not_fit_is_named_as_in_the_file(tmp_path: Path) -> None:
    w = drawn(hugging("bert"))
    del w["encoder.layer.1.output.dense.bias"]
    w["embeddings.position_embeddings.weight"] = torch.zeros(4, WIDTH, dtype=torch.double)
    w["encoder.layer.2.output.dense.bias"] = torch.zeros(WIDTH, dtype=torch.double)
    assert problems(*BERT, file(tmp_path, rooted(w, "bert"))) == [
        "'bert.embeddings.position_embeddings.weight' is 4x12, wanted 9x12",
        "it has no tensor 'encoder.layer.1.output.dense.bias', wanted 12",
        "it has no tensor 'classifier.weight', wanted 5x12",
        "it has no tensor 'classifier.bias', wanted 5",
        "'bert.encoder.layer.2.output.dense.bias' is no tensor of the model",
    ]
    w = drawn(timm())
    w["blocks.0.attn.qkv.weight"] = torch.zeros(3 * WIDTH + 1, WIDTH, dtype=torch.double)
    w["blocks.1.attn.qkv.bias"] = torch.zeros(6, dtype=torch.double)
    assert problems(*VIT, file(tmp_path, w)) == [
        "'blocks.0.attn.qkv.weight' is 37x12, wanted 36x12",
        "'blocks.1.attn.qkv.bias' is 6, wanted 36",
    ]
    del w["blocks.0.attn.qkv.weight"], w["blocks.1.attn.qkv.bias"]
    assert problems(*VIT, file(tmp_path, w)) == [
        "it has no tensor 'blocks.0.attn.qkv.weight', wanted 36x12",
        "it has no tensor 'blocks.1.attn.qkv.bias', wanted 36",
    ]


@pytest.mark.parametrize("kind", ["hugging", "timm"])
def test_a_token_of_distillation_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "timm":
        w = drawn(timm() | {"dist_token": (1, 1, WIDTH)} | pair("head_dist", CLASSES, WIDTH))
    else:
        w = rooted(drawn(hugging("vit") | {"embeddings.distillation_token": (1, 1, WIDTH)}), "deit")
    assert problems(*VIT, file(tmp_path, w)) == [
        "wanted a model without a token of distillation, found one with it"
    ]


@pytest.mark.parametrize("words", [VIT, BERT], ids=["vit", "bert"])
def test_layouts_have_a_place_of_its_own_for_every_tensor(words: tuple[str, ...]) -> None:
    """What a table forgets would keep its own name, and be missing in every file."""
    own = dict(built(*words).named_parameters())
    for layout in config.module("model", small(*words).model.name).PUBLISHED:
        assert [name for name in own if layout.named(name) == name] == []
        assert len({layout.source(name) for name in own}) == len(own)


def test_parts_of_a_matrix_are_not_copied(tmp_path: Path) -> None:
    """They lie in the memory of the file, which ranks of a node share."""
    network = built(*VIT, file(tmp_path, drawn(timm())))
    heads = network.block1.attention.heads
    places = [getattr(heads, part).weight.data_ptr() for part in ("query", "key", "value")]
    assert [place - places[0] for place in places] == [0, 4 * WIDTH**2, 8 * WIDTH**2]
