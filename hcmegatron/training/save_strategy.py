"""Checkpoint files in Megatron's torch_dist format, written by the saving process itself.

Megatron writes them through a queue of a manager process that it spawns at the first save and keeps, and by forked
writers. Those die of a signal that a launcher sends to the whole process group, and the checkpoint of a preemption
with them; they outlive a killed rank; and their queues need /dev/shm. Here nothing is started.
"""

from __future__ import annotations

from pathlib import Path

from torch.distributed import checkpoint

from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)


class InProcessSave(TorchDistSaveShardedStrategy):
    """The `sharded_strategy` of megatron.core.dist_checkpointing.save: one file a rank, on disk when it returns."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: str | Path) -> None:
        """Write this rank's shards. Collective.

        Raises:
            CheckpointException: of torch.distributed.checkpoint (no Exception), on every rank, where any could not
                write; by rank, what it met.
        """
        state, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, keep_only_main_replica=True
        )
        checkpoint.save(
            mcore_to_pyt_state_dict(state, is_loading=False),
            storage_writer=checkpoint.FileSystemWriter(checkpoint_dir, thread_count=1, sync_files=True),
            # every shard is written once, by its main replica, so there is nothing to deduplicate
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
