"""What a configuration asks for by name and only torch can say of this machine."""

from __future__ import annotations

from hcmegatron.config import Config, ConfigError
from hcmegatron.config.ineffective import ineffective


def check_device(config: Config, device: str | None = None) -> None:
    """What the configuration asks for by name and only torch can say of this machine. ConfigError where it cannot run.

    device: "cuda" or "cpu", where the ranks will be; None for the GPU if there is one.
    """
    if config.implementation == "te":
        from hcmegatron.platform.optional import transformer_engine

        if not (found := transformer_engine()).usable:
            raise ConfigError(f"implementation = te: {found.words}; use implementation=auto or local")
    if config.kernels in ("triton", "native") and "kernels" not in ineffective(config):
        from hcmegatron.kernels.select import select_kernels

        try:
            select_kernels(config.kernels, n=config.connection.n, device=device)
        except ValueError as error:
            raise ConfigError(str(error)) from None
