"""The only thing both stages share: cached features, their records, and what they depend on."""

from clipspm.cache.errors import ClipspmError, UsageError
from clipspm.cache.reader import Cache, find_cache, list_caches, open_cache
from clipspm.cache.spec import CacheSpec, Plan, Split, VideoRecord
from clipspm.cache.writer import CacheWriter

__all__ = [
    "Cache",
    "CacheSpec",
    "CacheWriter",
    "ClipspmError",
    "Plan",
    "Split",
    "UsageError",
    "VideoRecord",
    "find_cache",
    "list_caches",
    "open_cache",
]
