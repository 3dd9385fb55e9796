"""Stage two: cached features -> light heads -> numbers.

:func:`resolve_config` puts a configuration together, :func:`train` writes a run directory, :func:`evaluate`
scores it on test episodes that are named by a hash, :func:`ablate` says what each part is worth,
:func:`collect` and :func:`compare` put runs beside each other.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
