"""Tar shards: their format, packing images into them, and reading them."""
