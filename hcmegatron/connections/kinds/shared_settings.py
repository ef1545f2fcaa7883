"""Settings that several kinds share, each defined once. The comment after a field is its documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hcmegatron.connections.kinds.descriptor import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, setting


@dataclass
class Several:
    """Of streams or fractions."""

    n: int = setting(4, AT_LEAST_1, tries=(2, 4, 1, 3, 5))  # streams of HC and mHC; m, the fractions, of FC


@dataclass
class Trained:
    """Parameters of any sort."""

    lr_multiplier: float = setting(
        1.0,
        POSITIVE,
        tries=(1.0, 0.1, 3.0),
        change="applied",
        elsewhere="give your optimizer a parameter group for the connections",
    )  # of their learning rate


@dataclass
class Scaled:
    """Predictions that begin small."""

    # s_a, s_b of HC and FC; alpha of mHC and of the head
    alpha_init: float = setting(0.01, NOT_NEGATIVE, tries=(0.01, 1.0, 0.0), change="beginning")


@dataclass
class Predicted(Scaled):
    """HC's and FC's dynamic parts."""

    tanh: bool = setting(True)  # on what is predicted
    norm: Literal["layernorm", "rmsnorm", "layernorm_plain", "rmsnorm_plain"] = setting(
        "rmsnorm"
    )  # of the predictor


@dataclass
class Rooted(Scaled):
    """Gates predicted from the streams over their root mean square: mHC's, and the head's."""

    rms_eps: Literal["none", "inside", "added"] = setting(
        "none"
    )  # where model.norm_eps enters the root mean square
    pre_eps: float = setting(0.0, NOT_NEGATIVE, tries=(0.0, 1e-6))  # added to pre (DeepSeek-V4: 1e-6)
