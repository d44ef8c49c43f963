"""fedmpi compares methods of federated and federated split learning over MPI, honest to the byte.

The round
---------
Rank 0 is the server; the other ranks host the logical clients. In round t (`engine`, read first):

    tell      server: broadcast(t) -> pack -> bcast         -> unpack -> clients: receive
    work      clients: rows start from w, batches from streams, backward fills g, adjust, step;
              then upload -> pack.  A split method converses with the server in each step, half of
              the clients at a time, while the other half works:
              forward -> ask -> learn -> answer -> backward
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
    or, on a line, counts that come when messages are ready; evaluation and recording are off the
    clock, bad settings are errors before any collective.
13. What is simulated is called `sim_`, and is never added to what was measured.

The rooms
---------
Plural folders are axes: a setting, or a command's argument, names their modules. The others are
machinery, each on one floor. Who may import whom is a line a folder in
`tests/suites/test_imports.py`, and a test.

 Axes, one module each
    methods/       a difference from `fedavg`; a folder, if the paper needs more than a page
    models/        families of networks            datasets/      samples and labels
    partitions/    ways to divide samples          exchanges/     ways of messages between ranks
    bench/         benchmarks
 At the top
    engine         the round                       config         what a run is: the settings
    __main__       the command line                errors         what the caller can mend
    streams        the only source of randomness   provenance     where a result comes from
    units          numbers for people
 messages/         torch stops at `codec`, MPI starts at `wire`; between them are only bytes
    sparse         tensor <-> block                codec          block <-> bytes
    quantized      tensor <-> blocks of codes      wire           bytes <-> ranks
    clock          seconds by phase                ledger         bytes by client and kind
    counts         how many values remain
    sums           what uploads add up in, and what takes the place of their mean
 networks/
    flat           a network as one vector         layers         those beyond a sample
    recurrent      LSTM and GRU for rows           pruning        which single weights stay
    topology       which layer makes and reads which channel, and where its values lie
    flops          of a sample's way, by layer
    narrow         fewer channels, as a network      slicing     channels masked, or cut out
 data/
    files          where data sets lie             cache          what was decoded of them
    fetch          gets data sets                  layouts/       one module a layout of files
 clients/
    population     who holds which samples, who takes part
    heterogeneity  how far they differ             skew           what they make of samples
    devices        simulated: seconds, joules      burden         FLOPs and memory of training
    trace          who is available in which round
 training/
    train          rows of clients, local steps    feed           what a step learns from
    rows           models, one by one              stacked        models, all at once
    descent        a step against a gradient       inner          rows with smaller ones inside
    evaluate       accuracies                      hardware       devices, threads of a rank
    store          what clients keep between rounds; in it
    feedback       what compression left out       variates       what corrects gradients
 split/
    cuts           where networks are cut          sides          what both sides of a cut do
    lockstep       parts of networks learn         links          less than a batch crosses
 results/
    outcome        what is known after it          tables         columns of a result
    record         one run, one HDF5 file
 runs/
    job            ranks run, the root records     sweep          one file, many runs
    launch         which mpiexec, and how          memory         of the process
 terminal/
    show           lists and results               survey         a partition
    picture        of the same                     doctor         machines, what they lack
"""
