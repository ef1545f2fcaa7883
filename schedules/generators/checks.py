"""What every generator refuses, in one line that names the key, the value and the smallest that works."""


def check_ranks(name: str, ranks: int, least: int = 1) -> None:
    """ValueError unless there are at least ``least`` ranks."""
    if ranks < least:
        raise ValueError(f"{name}: ranks={ranks}; the smallest that works is {least}")


def check_sizes(name: str, ranks: int, microbatches: int, least: int = 1) -> None:
    """ValueError unless there is a rank and at least ``least`` micro-batches."""
    check_ranks(name, ranks)
    if microbatches < least:
        at = f"microbatches={microbatches} with ranks={ranks}"
        raise ValueError(f"{name}: {at}; the smallest that works is {least}")
