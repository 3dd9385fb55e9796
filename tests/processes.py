"""What tests have other processes do: these find it by this module's name."""

from concurrent.futures import ThreadPoolExecutor

from clipspm.extract.measured import remember


def remember_many(process: int) -> list[str]:
    """Note 40 measurements from ten threads at once."""
    with ThreadPoolExecutor(10) as pool:
        return list(pool.map(lambda i: remember(f"{process}-{i}", "bf16"), range(40)))
