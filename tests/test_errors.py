"""What takes more memory than there is is said in a sentence; what else is wrong passes."""

import re

import numpy as np
import pytest
import torch

from fedmpi.config import ConfigError
from fedmpi.errors import BadInput, fitting


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("np.empty((2**31, 2**31, 2**31))", "more memory than there is; wanted fewer or smaller "),
        ("np.empty(2**80)", "more memory than there is; wanted"),
        ("np.empty(2**58)", "more memory than there is, 2.00 EiB at once; wanted"),
        ("torch.empty(2**57)", f"more memory than there is, {2**59} bytes at once; wanted"),
        ("[0] * 2**60", "more memory than there is; wanted"),
    ],
)
def test_what_does_not_fit(program: str, said: str) -> None:
    """Whatever numpy, torch and Python call it."""
    with pytest.raises(BadInput, match=f"^{re.escape(said)}"), fitting():
        eval(program, {"np": np, "torch": torch})


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shape"), KeyError(1)])
def test_what_else_is_wrong_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as found, fitting():
        raise error
    assert found.value is error
    problem = ConfigError("a sentence of out of memory")
    with pytest.raises(ConfigError) as other, fitting():
        raise problem
    assert other.value is problem
