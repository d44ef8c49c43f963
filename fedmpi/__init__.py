"""fedmpi compares methods of federated and federated split learning over MPI, honest to the byte.

The round
---------
Rank 0 is the server; the other ranks host the logical clients. In round t (`engine`, read first):

    tell      server: broadcast(t) -> pack -> bcast         -> unpack -> clients: receive
    work      clients: rows start from w, batches from streams, backward fills g, adjust, step;
              then upload -> pack.  A split method converses with the server in each step:
              forward -> gather -> exchange -> scatter -> backward
    collect   gather -> unpack -> server: absorb, in client order, one message at a time
    step      server: moves the model
    outcome   off the clock: accuracies, bytes, seconds as rows of tables -> `record`

A method that has to agree on something (a mask) has rounds for it: every client takes part, none
trains, and the server closes them instead of a step. One before the first round is round -1.

The laws
--------
 1. A model is a vector: parameters in `w`, gradients in `g`, the network's tensors are views.
    Running statistics are in it, too, unless they are local; no gradient moves them.
 2. Clients are rows of w[C, n]; method mathematics is written on rows, elementwise or row-wise.
    Rows at work are the first ones: a chunk has the clients with most steps first.
 3. A method is a module; the file name is its name. There is no registry.
 4. A method is a difference from FedAvg, or from SplitFed: subclass, override one to four hooks.
 5. Server and clients meet only in messages. A method sees neither MPI, files, clocks nor ranks.
 6. A client owns its state, the network belongs to the rank; waiting state lies in `store`.
 7. Bytes are bytes: what is reported is the length of what MPI was handed, never a formula.
 8. One module knows MPI (`wire`), one HDF5 (`record`), one the wire format (`codec`).
 9. The round is on one screen.
10. (settings, round) alone tell every rank which collectives come next. The one way to end early
    is the server's: an empty word instead of the next round's, which every rank hears alike.
11. The number of ranks never changes the result, bit for bit on a CPU; to rounding where rows are
    stacked.
12. Waiting is not transfer, and nothing unknown passes: a timed barrier precedes each collective,
    evaluation and recording are off the clock, bad settings are errors before any collective.
13. What is simulated is called `sim_`, and is never added to what was measured.

The rooms
---------
    __main__     the command line                  job         ranks run settings, the root records
    sweep        one file that stands for many runs  launch    which mpiexec, and how
    show doctor  results and machines, for people  provenance  where a result comes from
    survey       a partition, for people           picture     of the same
    config       what a run is: the settings       errors      what the caller can mend
    engine       the round                         measure     what is known after it
    population   who holds which samples, who takes part, which rank hosts whom
    trace        who is available in which round
    skew         what clients make of their samples, and of the labels
    train        rows of clients, local steps      lockstep    the same for parts of networks
    rows stacked models side by side: one by one, or all at once
    descent      a step against a gradient         feed        what a step learns from
    flat         a network as one vector           layers      those that look beyond a sample
    recurrent    LSTM and GRU for rows         narrow     sub-models with fewer channels
    sparse       tensor <-> block                  codec       block <-> bytes
    wire         bytes <-> ranks                   store       what clients keep between rounds
    record       one run, one HDF5 file            tables      its columns
    clock        seconds by phase                  streams     the only source of randomness
    memory       of the process                    bench/      one module a benchmark
    heterogeneity  how far the clients differ      feedback    what compression left out
    files        where data sets lie               cache       what was decoded of them
    fetch        gets them, if there is a network  layouts/    one module a layout of files
    aggregation  medians, noise: not the mean      variates    what corrects gradients
    burden       FLOPs and memory of training      devices     simulated: seconds, joules, losses
    pruning      which weights are kept            powered     weights that are powers
    compress     smaller models for weak devices   nested  rows that learn through smaller ones
    channels     outputs of layers, what is theirs topology    which layer feeds which
    slicing      cuts channels out of a network    agent       learns how many are needed
    selection    which ones a client sends         pretrain    makes such an agent
    data/        one module a data set             models/     one module a family of networks
    methods/     one module a method               partitions/ one module a way to divide samples

Torch stops at `codec`, MPI starts at `wire`; between them there are only bytes. Who may import whom
is a table in `tests/test_imports.py`, and a test.
"""
