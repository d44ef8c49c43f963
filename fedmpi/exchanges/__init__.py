"""Exchanges: how messages travel between the ranks.

One module each, with a `Config` and an `Exchange`. An exchange packs messages, hands the bytes to
`messages.wire`, unpacks what arrives and charges it to the clients in the `Ledger`. It knows
neither methods nor the engine.
"""
