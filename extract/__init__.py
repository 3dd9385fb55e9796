"""Stage one: from video files and class names to cached encoder features.

Importing this package loads no deep-learning library, so that decode workers stay small;
``extract`` and ``Encoder`` are resolved on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
