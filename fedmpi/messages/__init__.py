"""Values as blocks, blocks as bytes, bytes between ranks; knows no network, client or method."""
