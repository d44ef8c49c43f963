"""The tables of a result: columns, their meanings and units."""

import numpy as np

from fedmpi.messages.codec import Kind

Columns = dict[str, tuple[str, str]]

DIRECTIONS = ("up", "down")
BETWEEN = "_between"
"""End of the names of columns with those bytes of a rank that are for, or from, another node."""
MOVED = (*DIRECTIONS, *(direction + BETWEEN for direction in DIRECTIONS))
"""Columns of a rank's bytes."""
BYTES = [f"{direction}_{kind.name.lower()}" for direction in DIRECTIONS for kind in Kind]
"""Columns of a client's bytes; up is from client to server."""
MEMORY = tuple(
    f"memory_{part}" for part in ("weights", "gradients", "optimizer", "activations", "samples")
)
"""Columns of a client's memory by part (see `clients.burden.Memory`)."""
COUNTED = "NaN unless devices are simulated or the model is split"
THEORY = "NaN unless evaluate.theory is set, and the round was evaluated and ended with an average"
"""End of the texts of columns whose names begin with `theory_`."""
SIM = "on the simulated device, not measured: "
"""Beginning of the texts of simulated columns, whose names begin with `sim_`."""

ROUNDS: Columns = {
    "round": ("i4", "communication round; -1 is an agreement before the first"),
    "warmup": ("?", "whether libraries and caches warm up in it: the first round, and round -1"),
    "sampled": ("i4", "clients that took part"),
    "loss": ("f8", "mean over those clients of their mean loss in local training"),
    "accuracy": (
        "f8",
        "of the global model, if there is one, on the test set without skew; where devices hold "
        "shares of it, of the largest share that one holds (see the table variants)",
    ),
    "validation": ("f8", "its accuracy on the held-out training samples, likewise"),
    "shard_mean": (
        "f8",
        "mean over all clients but newcomers of the accuracy on their test shard, as they see it, "
        "of the model that they have after the round: the global one, as for accuracy, or the "
        "server's part with their own",
    ),
    "shard_std": ("f8", "standard deviation of the same (population)"),
    "shard_min": ("f8", "minimum of the same"),
    "personal_mean": (
        "f8",
        "mean over the round's clients of the accuracy of their local models on their test shards",
    ),
    "density": (
        "f8",
        "share of the weights of convolutions and linear layers that are not zero in the global "
        "model, if there is one",
    ),
    "up": ("i8", "bytes from the clients, summed over them"),
    "down": ("i8", "bytes to the clients, summed over them"),
    "base": (
        "i8",
        "bytes that the round's new clients have to be sent beside these: see the table clients",
    ),
    "seconds": ("f8", "wall time of the round, without evaluation and recording"),
    "lost": ("i4", "clients whose upload was lost: the server never learnt of it"),
    "covered": (
        "f8",
        "share of the channels that some client has sent so far; NaN unless the method selects "
        "channels",
    ),
    "lora_bias": (
        "f8",
        "distance of the product of the clients' mean factors from the mean of their low-rank "
        "products, over the length of that mean; NaN unless the method is flexlora with products",
    ),
    "lora_lost": (
        "f8",
        "distance of the new factors' product from the same mean, likewise: what the rank cuts off",
    ),
    "theory_objective": (
        "f8",
        "objective F at the model after the round: the clients' mean losses over their training "
        f"samples, averaged as updates are; {THEORY}",
    ),
    "theory_gradient": ("f8", f"squared norm of the gradient of F at the same model; {THEORY}"),
    "flops": ("f8", f"of the clients' training, summed over them; {COUNTED}"),
    "server_flops": ("f8", "of the server's training of what lies behind a cut"),
    "server_seconds": ("f8", "in which the server worked: rank 0's phase `serve`"),
    "sim_seconds": (
        "f8",
        "simulated, not measured: the slowest client's, or where one begins as another ends the "
        "sum of all clients'; then the server's",
    ),
    "sim_joules": ("f8", "simulated, not measured: all clients' for computing and sending"),
}
CLIENTS: Columns = {
    "round": ("i4", "communication round; -1 is an agreement before the first"),
    "client": ("i4", "logical client"),
    "rank": ("i4", "rank that hosted it"),
    "samples": ("i4", "training samples"),
    "steps": ("i4", "local steps"),
    "loss": ("f8", "mean loss in local training"),
    "seconds": ("f8", "its local training, and preparing its upload"),
    "accuracy": (
        "f8",
        "of the model that the client has after the round, on its test shard, as it sees it: the "
        "global one, or the server's part with its own; NaN if there is neither",
    ),
    "personal": ("f8", "of its local model, after local training, on the same"),
    "distance": (
        "f8",
        "Euclidean distance that its parameters went in local training, as the server knows them; "
        "NaN unless the method weighs by it, or where the upload was lost",
    ),
    "weight": ("f8", "its share in the average of parameters, 0 to 1; NaN where distance is"),
    "theory_variance": (
        "f8",
        "of its minibatches' gradients at the model after the round: mean squared distance from "
        f"the gradient over all its training samples; {THEORY}",
    ),
    "theory_drift": (
        "f8",
        "squared distance of its local model from the weighted mean of the round's local models; "
        f"NaN where the upload was lost, or the client has no whole model; {THEORY}",
    ),
    "theory_pruning": (
        "f8",
        "||w - m * w||^2: squared norm of the values that the mask m took from the model with "
        f"which it began the round; NaN in methods that prune no stored values; {THEORY}",
    ),
    "theory_rounding": (
        "f8",
        "E||Q(g) - g||^2: expected squared error of quantizing a gradient g of its minibatches at "
        "the model after the round, before a mask; NaN in methods that quantize no gradients of "
        f"local steps; {THEORY}",
    ),
    **dict.fromkeys(
        BYTES,
        (
            "i8",
            "bytes of that kind in that direction, in its packed messages; an upload that is added "
            "up on its own rank counts as it would be packed",
        ),
    ),
    "base": (
        "i8",
        "bytes of the frozen weights of a file (model.initial) that it has to be sent once, in the "
        "first round that it takes part in; every rank reads the file, so that they are counted "
        "and no part of down",
    ),
    "lost": ("?", "whether its upload was lost: it costs, but the server never learnt of it"),
    "tier": ("S16", "kind of device; empty without devices"),
    "flops": ("f8", f"of its training, counted on the network that it has; {COUNTED}"),
    "memory": ("f8", "MiB that its training takes at its peak: the next five together"),
    "memory_weights": ("f8", "MiB of the weights that it has, frozen ones and masks included"),
    "memory_gradients": ("f8", "MiB of the gradients of those that train"),
    "memory_optimizer": ("f8", "MiB of the optimizer's state"),
    "memory_activations": ("f8", "MiB of what autograd keeps of the largest batch"),
    "memory_samples": ("f8", "MiB of what splitcom keeps of its samples between steps"),
    "whole_flops": ("f8", "what the same samples would take on the whole network, as in FedAvg"),
    "whole_memory": ("f8", "MiB, likewise"),
    "sim_compute": ("f8", f"{SIM}seconds of training"),
    "sim_up": ("f8", f"{SIM}seconds of sending, latencies included"),
    "sim_down": ("f8", f"{SIM}seconds of receiving, latencies included"),
    "sim_seconds": ("f8", f"{SIM}the three together"),
    "sim_compute_joules": ("f8", f"{SIM}energy of training"),
    "sim_transmit_joules": ("f8", f"{SIM}energy of sending"),
    "sim_share": ("f8", f"{SIM}its share of the band; 1 on a channel of its own"),
    "sim_repeats": ("f8", f"{SIM}transmissions that failed and were repeated, up and down"),
}
PHASES: Columns = {
    "round": ("i4", "communication round; -1 is an agreement before the first"),
    "rank": ("i4", "rank"),
    "phase": ("S8", "what the rank was doing; evaluate and record are off the clock"),
    "seconds": ("f8", "for how long"),
}
RANKS: Columns = {
    "round": ("i4", "communication round; -1 is an agreement before the first"),
    "rank": ("i4", "rank"),
    "up": (
        "i8",
        "bytes of the buffers that it handed to MPI for the server: uploads, or a sum of them or "
        "its pieces; the root adds to its own sum in place, and hands none",
    ),
    "down": (
        "i8",
        "bytes of the buffers that MPI handed it from the server, or from ranks on the way to it",
    ),
    "up_between": ("i8", "those of up that are for a rank on another node"),
    "down_between": ("i8", "those of down that are from a rank on another node"),
}
VARIANTS: Columns = {
    "round": ("i4", "communication round that was evaluated"),
    "share": ("f8", "share of the model that a device holds, as the method counts it"),
    "kind": ("S8", "compressor by which it is made smaller; empty unless methods have several"),
    "clients": ("i4", "clients with that share; on average, if clients draw it each round"),
    "accuracy": (
        "f8",
        "of the global model as such a device holds it, on the test set without skew",
    ),
    "bytes": ("i8", "of that model as it is sent to one client, positions and headers included"),
    "flops": ("f8", "of training it on one sample, forward and back"),
    "memory": (
        "f8",
        "MiB that training it takes, as in the table clients, a batch of `batch`",
    ),
}
LAYERS: Columns = {
    "round": ("i4", "round of an agreement; -1 is before the first"),
    "layer": ("S64", "convolution or linear layer, by its name in the network"),
    "weights": ("i8", "weights that it has, biases aside"),
    "kept": ("i8", "of them those that are not zero in the global model after the agreement"),
}
MASKS: Columns = {
    "round": ("i4", "round of an agreement; -1 is before the first"),
    "kind": (
        "S8",
        "what a mask is compared with. clients: that of another client. agreed: the one agreed on. "
        "batches: the one from minibatches that are drawn again. oracle: the one from the gradient "
        "over all training samples",
    ),
    "client": ("i4", "client who would have chosen the mask alone; -1: the mask agreed on"),
    "other": ("i4", "the other client; -1 unless kind is clients"),
    "common": ("f8", "share of the kept weights of prunable layers that both masks keep"),
    "jaccard": ("f8", "weights that both keep over weights that one of them keeps"),
}
FINAL: Columns = {
    "client": ("i4", "logical client"),
    "newcomer": ("?", "whether it is one of those that never took part"),
    "samples": ("i4", "training samples"),
    "accuracy": (
        "f8",
        "of the model that it has after the last round, on its test shard, as it sees it: the "
        "global one, or its own, or the server's part with its own",
    ),
    "tuned": ("f8", "of the same after evaluate.final_epochs of more training; NaN without"),
}
"""Measured once, after all rounds; without rows unless `evaluate.final` says so."""
SLICES: Columns = {
    "client": ("i4", "logical client"),
    "newcomer": ("?", "whether it is one of those that never took part"),
    "channels": ("f8", "share of the encoder's channels that its selection keeps"),
    "whole_accuracy": (
        "f8",
        "of the model that it has after the last round, as in `final`",
    ),
    "accuracy": ("f8", "of the same without the other channels, which are cut out, untrained"),
    "tuned": ("f8", "of the same after evaluate.final_epochs of more training of what is left"),
    "whole_flops": ("f8", "of the whole network for one sample, forward"),
    "flops": ("f8", "of the sliced network for one sample, forward"),
    "whole_seconds": (
        "f8",
        "of the whole network for one sample, measured on the rank's CPU: median of turns in which "
        "both networks are timed; threads are those of the attribute threads_per_rank",
    ),
    "seconds": ("f8", "of the sliced network, likewise"),
    "batch": ("i4", "samples of the batch behind the next two columns: those of a local step"),
    "whole_batch_seconds": ("f8", "of the whole network for that batch, likewise"),
    "batch_seconds": ("f8", "of the sliced network for that batch, likewise"),
}
"""Measured once, with `evaluate.final = slice`."""
NEWCOMERS: Columns = {
    "client": ("i4", "logical client, one of those that never took part"),
    "start": (
        "S8",
        "what it begins with: model, what it has after the last round; scratch, the initial model",
    ),
    "epoch": ("i4", "epochs of local training since then, 0 to evaluate.final_epochs"),
    "accuracy": (
        "f8",
        "after them, on its test shard; where a part of the model stays with clients, from `model` "
        "it trains this part alone, and from `scratch` all of it",
    ),
}
"""Measured once, with `evaluate.final = tune` and newcomers."""
OF_ROUNDS = {
    "rounds": ROUNDS,
    "clients": CLIENTS,
    "phases": PHASES,
    "ranks": RANKS,
    "variants": VARIANTS,
    "layers": LAYERS,
    "masks": MASKS,
}
"""Tables that rounds add rows to. `variants` has rows if devices hold different shares, `layers` in
agreements, and `masks` if the method compares masks in them."""
OF_END = {"final": FINAL, "slices": SLICES, "newcomers": NEWCOMERS}
"""Tables that get all their rows after the last round, if they get any."""
TABLES = OF_ROUNDS | OF_END
LATER = ("variants", "layers", "masks", *OF_END)
"""Tables that results of earlier versions lack; a reader takes them as empty."""


def empty(columns: Columns, rows: int) -> np.ndarray:
    """Returns a table with `rows` rows: NaN in columns of floats, else zeros."""
    table = np.zeros(rows, [(name, form) for name, (form, _) in columns.items()])
    for name, (form, _) in columns.items():
        if form.startswith("f"):
            table[name] = np.nan
    return table
