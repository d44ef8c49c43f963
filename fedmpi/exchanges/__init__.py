"""Ways of messages between ranks: one module each; knows no method, and no engine."""
