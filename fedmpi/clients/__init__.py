"""The clients: samples, availability and devices; nothing here trains or knows a method."""
