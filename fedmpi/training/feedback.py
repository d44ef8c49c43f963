"""Error feedback: what a client's compressor left out of an update is added to its next one.

F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, *1-Bit Stochastic Gradient Descent and its Application to
Data-Parallel Distributed Training of Speech DNNs*, Interspeech 2014; S. P. Karimireddy, Q. Rebjock,
S. U. Stich, M. Jaggi, *Error Feedback Fixes SignSGD and other Gradient Compression Schemes*, ICML
2019, arXiv 1901.09847.

If the upload was lost, all of it was left out. The client learns of that with the next word from
the server.
"""

from typing import ClassVar

from torch import Tensor

from fedmpi import config
from fedmpi.training.store import Provisional
from fedmpi.training.train import Trainer


class Config(config.Method):
    """Settings of a method that can do with error feedback, and without."""

    controls: ClassVar[bool] = True

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
        self.residuals: Provisional | dict[int, Tensor] = {}
        if is_on:
            self.residuals = trainer.provisional(name, size)

    def add(self, client: int, update: Tensor) -> None:
        """Adds the client's residual, if it has one, to an update [size] in place."""
        if client in self.residuals:
            update += self.residuals[client].to(update.device)

    def kept(self, update: Tensor) -> Tensor:
        """Returns what the residual is if the upload is lost: the update [size] as it is now.

        It is a copy if the update may still be needed after its compression.
        """
        is_needed = isinstance(self.residuals, Provisional) and not self.residuals.is_sure
        return update.clone() if is_needed else update

    def remember(self, client: int, rest: Tensor, whole: Tensor) -> None:
        """Takes what is left out of an update.

        Args:
            client: the client.
            rest: what was not sent, [size].
            whole: the update that was to be sent, with the old residual, [size] (see `kept`).
        """
        if isinstance(self.residuals, Provisional):
            self.residuals.put(client, rest, whole)
