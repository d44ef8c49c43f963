"""Messages: encoding, packing, transport, accounts; knows no network, client or method."""
