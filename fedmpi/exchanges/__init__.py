"""Exchanges: how messages travel between the ranks.

Each module has a `Config`, an `Exchange` and `steps`, the parts of which a round's uplink consists,
by which `costs` predicts its seconds. An exchange packs messages, hands the bytes to
`messages.wire`, unpacks the bytes that arrive, and charges them to the clients in the `Ledger`. It
knows neither methods nor the engine.

With `star` the server gets all uploads, and any method will do. The others add up on the way, and
the server gets a sum: for methods that need no more (`config.Method.adds`), under the mean.
"""
