"""clipspm: few-shot action recognition on cached CLIP features.

Stage one (:mod:`clipspm.extract`) runs an image and text encoder once over every video and class
name; :mod:`clipspm.cache` stores the features; stage two (:mod:`clipspm.train_heads`) trains and
evaluates light heads on them, episode by episode. :mod:`clipspm.recognise` names what clips show by a few
others, without a cache or training.
"""

import lazy_loader

__version__ = "0.3.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
