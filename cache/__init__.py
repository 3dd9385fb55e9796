"""The only thing both stages share: cached features, their records, and what they depend on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
