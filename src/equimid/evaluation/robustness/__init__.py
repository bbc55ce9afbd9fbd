"""Accuracy under corruptions, shifts and poses."""
