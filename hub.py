"""What the Hugging Face hub refuses, said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from clipspm.errors import ClipspmError, UsageError


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the hub inside the block into :class:`ClipspmError`."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no name on the hub: it must be like ORGANISATION/NAME") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ClipspmError(
            f"{repo_id}: the hub cannot be reached, or refuses ({said}); `hf auth login` signs in"
        ) from error
    except Exception as error:  # its HTTP library's own, which are of no common kind
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise ClipspmError(f"{repo_id}: the hub cannot be reached ({error})") from error
