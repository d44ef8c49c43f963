"""Exchanges: how messages travel between the ranks.

Each module has a `Config` and an `Exchange`, but for `auto`, which has one of the others chosen. If
its seconds are predicted (`costs`), it also has `steps`, the parts of which a round's uplink
consists. An exchange packs messages, hands the bytes to `messages.wire`, unpacks the bytes that
arrive, and charges them to the clients in the `Ledger`. It knows neither methods nor the engine.

With `star` the server gets all uploads, and any method will do. The others add up on the way, and
the server gets a sum: for methods that need no more (`config.Method.adds`), under the mean.
`sparse` may cut sums down to their largest values on the way: for methods whose clients do so with
their updates (`config.Method.chooses`).
"""
