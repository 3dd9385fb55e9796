"""Stage two: cached features -> light heads -> numbers.

:func:`resolve_config` puts a configuration together, :func:`train` writes a run directory, :func:`evaluate`
scores it on test episodes that are named by a hash, :func:`ablate` measures what each part contributes,
:func:`collect` tabulates runs and :func:`compare` compares two.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
