"""clipspm: few-shot action recognition on cached CLIP features.

Stage one (:mod:`clipspm.extract`) runs an image and text encoder once over every video and class
name; :mod:`clipspm.cache` stores the features; stage two (:mod:`clipspm.train_heads`) trains and
evaluates light heads on them, episode by episode.
"""

__version__ = "0.3.0"
