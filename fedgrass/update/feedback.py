"""Error feedback: what a lossy codec left out of an update is kept on the device, and added to its next one.

Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019,
https://arxiv.org/abs/1901.09847
"""

from __future__ import annotations

from dataclasses import dataclass

from fedgrass.kept_state import KeptState


@dataclass(frozen=True)
class ErrorFeedback(KeptState):
    """The residual of one model on one device, in a file.

    ``before`` is added to the round's difference. An update that never counts takes what it carried with it, as any lost update
    does.
    """
