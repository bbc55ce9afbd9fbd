"""Add-ons: losses beside the base objective. Each declares the views and the taps that it needs."""

from equimid.addons.ser import SER, SERConfig, ser_loss

__all__ = ["SER", "SERConfig", "ser_loss"]
