"""Exchanges: how messages travel between the ranks.

Each module has a `Config` and an `Exchange`. An exchange packs messages, hands the bytes to
`messages.wire`, unpacks the bytes that arrive, and charges them to the clients in the `Ledger`. It
knows neither methods nor the engine.
"""
