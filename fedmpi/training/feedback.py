"""Error feedback: what a client's compressor left out of an update is added to its next one.

F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, *1-Bit Stochastic Gradient Descent and its Application to
Data-Parallel Distributed Training of Speech DNNs*, Interspeech 2014; S. P. Karimireddy, Q. Rebjock,
S. U. Stich, M. Jaggi, *Error Feedback Fixes SignSGD and other Gradient Compression Schemes*, ICML
2019, arXiv 1901.09847.
"""

from torch import Tensor

from fedmpi import config
from fedmpi.training.store import Store
from fedmpi.training.train import Trainer


class Config(config.Method):
    """Settings of a method that can do with error feedback, and without."""

    error_feedback: bool = True
    """Add what was not sent to the client's next update."""

    @property
    def keeps_state(self) -> bool:
        """Residuals."""
        return self.error_feedback


class Feedback:
    """Each client's residual, float32 [size]: the update that was to be sent, minus what was.

    Args:
        trainer: keeps the residuals.
        size: length of an update.
        is_on: without it nothing is kept, and nothing added.
        name: of the store.
    """

    def __init__(
        self, trainer: Trainer, size: int, is_on: bool = True, name: str = "residual"
    ) -> None:
        self.is_on = is_on
        self.residuals: Store | dict[int, Tensor] = trainer.store(name, size) if is_on else {}

    def add(self, client: int, update: Tensor) -> None:
        """Adds the client's residual, if it has one, to an update [size] in place."""
        if client in self.residuals:
            update += self.residuals[client].to(update.device)

    def remember(self, client: int, rest: Tensor) -> None:
        """Takes what was left out of the update [size]."""
        if self.is_on:
            self.residuals[client] = rest
