"""What a run keeps of its models: which, and gathered on the root in the end."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedmpi.engine import Engine
from fedmpi.networks.flat import Piece
from fedmpi.results.kept import Kept
from fedmpi.units import amount

TURN = 1 << 26
"""Bytes of a rank's clients that are gathered at once."""


class Trained:
    """Keeps the global model of a run, and what its clients have of their own.

    All ranks know from the settings what is kept, so that they gather it together.

    Args:
        engine: of the run.

    Attributes:
        left: says what exceeds the limit; empty if nothing does.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.flat = engine, engine.flat
        self.settings = settings = engine.settings
        pieces = self.flat.parameters + ([] if self.flat.is_local else self.flat.statistics)
        self.pieces = sorted(pieces, key=lambda piece: piece.start)
        self.what, limit = settings.keep, 1e6 * settings.keep_limit
        whole = 4.0 * (self.flat.size + self.flat.frozen_size)
        self.own = self._own() if self.what == "last" else []
        self.has_statistics = self.what == "last" and engine.trainer.keeps_statistics
        values = _length(self.own)
        per_client = 4.0 * (values + len(self.flat.local_stats) * self.has_statistics)
        per_client += values * settings.method.owns_mask
        theirs, self.left = per_client * settings.clients, ""
        helps = f"more than keep_limit = {settings.keep_limit} MB"
        if self.what != "none" and whole > limit:
            self.what, self.own, self.has_statistics = "none", [], False
            self.left = f"the model of {amount(whole)} is not kept: it is {helps}"
        elif per_client and whole + theirs > limit:
            self.own, self.has_statistics = [], False
            self.left = (
                f"what clients have of their own, {amount(theirs)}, is not kept: with the model it "
                f"is {helps}"
            )

    def _own(self) -> list[Piece]:
        """The tensors that clients have of their own."""
        if self.settings.method.owns:
            return self.pieces
        private = self.engine.clients.private
        if private is None:
            return []
        return [piece for piece in self.pieces if bool(private[piece.start : piece.stop].any())]

    def after(self, t: int, is_best: bool) -> None:
        """Keeps the model after round t, on the root, if it is the best so far and is wanted.

        It lies on the engine, because it is a part of checkpoints.
        """
        if self.what == "best" and is_best:
            self.engine.best = {"round": np.array(t), **self._global()}

    def _global(self) -> dict[str, np.ndarray]:
        """The server's model `w` [n], and its `mask` if it has one; copies."""
        assert self.engine.server is not None
        state = self.engine.server.state()
        return {name: state[name].cpu().numpy().copy() for name in ("w", "mask") if name in state}

    def gather(self) -> Kept | None:
        """What is kept, on the root; None elsewhere, and if nothing is.

        All ranks call it, after the last round and before anything is trained further.
        """
        if self.what == "none":
            return None
        own, own_mask = self._gathered() if self.own or self.has_statistics else ({}, {})
        if self.engine.server is None:
            return None
        found = self.engine.best if self.what == "best" else {}
        if self.what == "best" and not found:
            self.left = "the last model is kept: an earlier job had the best one, and kept none"
        found = found or {"round": np.array(self.engine.last), **self._global()}
        mask = self._named(found["mask"]) if "mask" in found else {}
        frozen = {name: one.detach().cpu().numpy() for name, one in self.flat.frozen.items()}
        return Kept(int(found["round"]), self._named(found["w"]) | frozen, mask, own, own_mask)

    def _named(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors of a vector [n]."""
        return {p.name: vector[p.start : p.stop].reshape(p.shape) for p in self.pieces}

    def _gathered(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The clients' own tensors [clients, *shape] and their masks, on the root."""
        engine, wire = self.engine, self.engine.wire
        w = engine.evaluation.published(None if engine.server is None else engine.server.w, wire)
        aside = self.flat.statistics if self.has_statistics else []
        pieces = [*self.own, *aside]
        masked = self.own if self.settings.method.owns_mask else []
        fields = [("client", "i8"), ("values", "f4", (_length(pieces),))]
        fields += [("mask", "?", (_length(masked),))] if masked else []
        kind = np.dtype(fields, align=True)
        places = {"values": pieces, "mask": masked}
        found: dict[str, dict[str, np.ndarray]] = {
            column: {
                piece.name: np.zeros((self.settings.clients, *piece.shape), kind[column].base)
                for piece in (some if wire.is_root else [])
            }
            for column, some in places.items()
            if some
        }
        hosted = [engine.placement.hosted(rank) for rank in range(wire.size)]
        step = max(1, TURN // kind.itemsize)
        for start in range(0, max(map(len, hosted)), step):
            rows = self._rows(hosted[wire.rank][start : start + step], w, kind)
            for part in wire.report(rows):
                for column, tensors in found.items() if wire.is_root else ():
                    at = 0
                    for piece in places[column]:
                        end = at + piece.stop - piece.start
                        values = part[column][:, at:end].reshape(-1, *piece.shape)
                        tensors[piece.name][part["client"]] = values
                        at = end
        return found["values"], found.get("mask", {})

    def _rows(self, clients: Sequence[int], w: Any, kind: np.dtype) -> np.ndarray:
        """A row for each client: the values of its own tensors, one behind the other."""
        rows = np.zeros(len(clients), kind)
        statistics = self.engine.trainer.statistics
        for row, client in zip(rows, clients, strict=True):
            row["client"], parts = client, []
            if self.own:
                model = self.engine.clients.owned(self.engine.last, client, w).cpu().numpy()
                parts += [model[piece.start : piece.stop] for piece in self.own]
            if self.has_statistics:
                nothing = np.full(len(self.flat.local_stats), np.nan, np.float32)
                known = client in statistics
                parts.append(statistics[client].cpu().numpy() if known else nothing)
            row["values"] = np.concatenate(parts)
            if "mask" in (kind.names or ()):
                kept = self.engine.clients.owned_mask(client).cpu().numpy()
                row["mask"] = np.concatenate([kept[p.start : p.stop] for p in self.own])
        return rows


def _length(pieces: Sequence[Piece]) -> int:
    """Values of some tensors."""
    return sum(piece.stop - piece.start for piece in pieces)
