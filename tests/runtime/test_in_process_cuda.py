"""Every schedule on one GPU, a stream for each rank: the losses and gradients of one process on the CPU."""

import pytest
import torch

from schedules import GENERATORS
from tests.runtime.equality import SIZES, check_in_process
from tests.runtime.stages import BlockStage, LateStage

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: ranks are streams there"),
]


@pytest.mark.parametrize("kind", [BlockStage, LateStage])
@pytest.mark.parametrize("ranks", SIZES)
@pytest.mark.parametrize("name", GENERATORS)
def test_in_process(name, ranks, kind, tmp_path):
    check_in_process(name, ranks, tmp_path, torch.device("cuda"), kind)
