"""Detection with a frozen network."""
