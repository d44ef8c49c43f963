"""fedmpi compares methods of federated and federated split learning over MPI, honest to the byte.

The round
---------
Rank 0 is the server; the other ranks host the logical clients. In round t (`engine`, read first):

    tell      server: broadcast(t) -> pack -> bcast         -> unpack -> clients: receive
    work      clients: rows start from w, batches from streams, backward fills g, adjust, step;
              then upload -> pack.  In a split method clients and server take each step together;
              half of the clients computes while the server serves the other half:
              forward -> ask -> learn -> answer -> backward
    collect   gather -> unpack -> server: absorb, in client order, one message at a time; or each
              rank absorbs its own clients' uploads, and merge adds the ranks' sums (`reduce`)
    step      server: moves the model
    outcome   off the clock: accuracies, bytes, seconds as rows of tables -> `record`
    pause     off the clock, where the server says so: a copy of all state -> `checkpoint`, which is
              written while the next rounds go on

A method that has to agree on something (a mask) has rounds for it, called agreements: every client
takes part, none trains, and the server sends the result instead of a step. An agreement before the
first round is round -1.

The laws
--------
 1. A model is a vector: what trains of it in one contiguous vector `w`, gradients in `g`; the
    network's tensors are views. What is frozen lies beside them (`networks/parts`). Running
    statistics are in w, too, unless they are local; no gradient moves them. Masks, control
    variates, residuals and sub-models are vectors or index sets over `w`.
 2. Clients are rows of w[C, n]; a method's mathematics is elementwise or row-wise. The same lines
    run one client after the other on a CPU, or stacked on a GPU. Small dense networks train
    together on a CPU, too, with the bits of one after the other. A chunk's rows are ordered by
    steps, the clients with most steps first, so that active rows are always the first ones.
 3. A method is a module: a file, or a folder if its paper needs more than one page. The file name
    is its name. There is no registry.
 4. A method is a difference from FedAvg, or from SplitFed: it subclasses, and overrides one to four
    hooks. What can be combined with any method (error feedback, a codec) is a setting.
 5. Server and clients meet only in messages. A method sees neither MPI, files, clocks nor ranks.
    The server's half exists on the root alone.
 6. Facts of the protocol stand on the settings: whether a method agrees on something, converses,
    broadcasts, keeps state, has a global model. `config.Method` has FedAvg's answers as defaults,
    so that every rank knows them without the server's half.
 7. A client owns its state; the network belongs to the rank. State lies in `store` while its client
    is idle.
 8. Sums are things: `Sum` (a vector and a weight), `Held` (a mean over those who have a value),
    `Kept` (median, trimmed mean, clip, noise). What two sums consist of, an exchange may add up on
    the way to the server.
 9. Bytes are bytes: one packed buffer per rank and collective. The bytes reported of a rank are the
    length of the buffers that MPI was handed, and those of a client the length of its packed
    messages, never a formula. Where uploads are added up on the way, the two have no common sum.
10. One module knows MPI (`wire`), one writes HDF5 (`record`), one knows the wire format (`codec`).
11. The round is on one screen.
12. (settings, round) alone tell every rank which collectives come next. A run is interrupted in one
    way only: the server broadcasts no message for the next round, and then says what comes instead:
    a checkpoint, or the end. Every rank receives that alike. What outlives a round is `state` or a
    store, and nothing else (`results/checkpoint`).
13. The number of ranks never changes the result: bit for bit on a CPU with the exchange `star`; to
    rounding with one that adds on the way, on a GPU, or where `rows` stacks other networks than
    dense ones. The one exception is `exchange.reselect`, whose merges follow the ranks. Settings of
    the machine (`config.MACHINE`) are no part of a run's identity. They change rounding at most:
    threads of a rank do, and `exchange.window` does where it decides who hosts whom or what is
    stacked.
14. Waiting is not transfer, and nothing unknown passes. A timed barrier precedes each collective;
    on a split method's lines, and from rank to rank, counts are sent first, when messages are
    ready. Evaluation and recording are off the clock. Bad settings are errors before any
    collective.
15. What is simulated or predicted is called so (`sim_`, `predicted_`), and is never added to what
    was measured.

The rooms
---------
Plural folders are axes of variation: a setting, or a command's argument, names one of their
modules. The other folders are machinery. `tests/suites/test_imports.py` has a line for each folder
that says which others it may import, and checks it.

 Axes, one module each
    methods/       a difference from `fedavg`; a folder, if the paper needs more than a page
    models/        families of networks            datasets/      samples and labels
    partitions/    ways to divide samples          exchanges/     ways of messages between ranks
    bench/         benchmarks
 At the top
    engine         the round                       config         settings of a run
    __main__       the command line                loading        reads and checks settings
    words          values as they are written      errors         errors that the user can fix
    streams        the only source of randomness   provenance     software and machine of a result
    units          numbers for people              draft          files written as a whole
    inputs         files that settings name        turns          times of candidates in turns
    costs          seconds of exchanges, predicted weights        files of weights
 messages/         torch stops at `codec`, MPI starts at `wire`; between them are only bytes
    sparse         tensor <-> block                codec          block <-> bytes
    quantized      tensor <-> quantized blocks     wire           bytes <-> ranks
    lossless       values <-> frames of zstd
    select         which values are sent           counts         how many values are kept
    kernels/       loops over arrays that run as machine code: `ranking` (the largest), `places`
                   (positions), `adding`, `codes` (values of few bits), `philox` (random draws)
    clock          seconds by phase                ledger         bytes by client and kind
    partial        sums on their way <-> blocks
    coding         codec of updates: float32 blocks <-> blocks in few bits, whatever the method
    sums           weighted sums of uploads, and robust alternatives to their mean
 networks/
    flat           a network as one vector         layers         additional layers
    recurrent      LSTM and GRU for rows           attention      parts of transformers
    topology       channels: who makes and reads   pruning        masks of single weights
    parts          what trains, what is frozen     adapters       small layers that train instead
    initial        weights from a file
    narrow         sub-models, fewer channels      slicing        channels masked or cut out
    flops          FLOPs by layer and front
 data/
    files          where data sets lie             cache          decoded data sets
    fetch          downloads data sets             layouts/       one module per file format
 clients/
    population     shards, sampling, weights       placement      waves, and hosts of clients
    trace          availability by round           heterogeneity  how different shards are
    skew           transformed labels and samples  devices        simulated: seconds, joules
    burden         FLOPs and memory of training
 training/
    train          local steps of rows of clients  rates          learning rates of local steps
    feed           batches of each local step      probe          measurements of single models
    rows           models, one by one              stacked        models, all at once
    dense          small networks, several at once inner          networks inside rows
    descent        optimizers of rows
    evaluate       accuracies                      hardware       devices and threads of a rank
    store          clients' state between rounds   feedback       residuals of compression
    variates       control variates of clients     spans          values that compete to be sent
    downlink       changes of the model in its place
    theory         terms of a bound on convergence
    server_optimizer   moves the global model by the mean update
    inference      sliced networks against whole ones
 split/
    cuts           where networks are cut          sides          both sides of a cut, by step
    lockstep       parts that step together        links          compressed messages at a cut
    samples        which ones a batch has
 results/
    outcome        the measurements of a round     tables         columns of a result
    record         one run, one HDF5 file          lease          the right to write a result
    kept           the model in a result           ordered        writes that a kill does not harm
    checkpoint     state between rounds, in files  keeper         when it is written; signals
 runs/
    job            runs the ranks, records         sweep          one file, many runs
    progress       a job's rounds as they go on
    launch         finds and starts mpiexec        memory         memory of the process
    earlier        whether a run is there already  trained        which models a run keeps
    upstream       trains centrally, beforehand
    measure        a kept model, measured again
 terminal/
    show           one result                      folder         all results of a folder
    style          tables and colours              letters        what an output's encoding lacks
    catalogue      lists of modules and settings   survey         statistics of a partition
    picture        a partition as a picture        doctor         checks of the machine
    measured       accuracies of a kept model      watch          runs as they go on
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def model(path: str | os.PathLike[str], client: int | None = None) -> "nn.Sequential":
    """Returns the network of a result with the weights that the run left, in evaluation mode.

    Args:
        path: the result.
        client: whose model, with what the client has of its own; None for the server's.

    Raises:
        RecordError: if the file is no result, or keeps no such model.
    """
    from pathlib import Path

    from fedmpi.results import kept

    return kept.module(Path(path), client)
