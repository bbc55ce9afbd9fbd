"""Bits, records and names of before a refactor, to compare with those of after it: see README.md."""
