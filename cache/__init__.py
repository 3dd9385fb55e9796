"""Cached features, their records and the settings behind them: all that the two stages share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
