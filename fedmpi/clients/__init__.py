"""Who holds which samples, when and on what device; nothing here trains or knows a method."""
