"""The factor that keeps gradients in half precision within range."""

from __future__ import annotations

from typing import Any

GROWTH_INTERVAL = 2000  # torch.amp.GradScaler's; as the factors and the first scale


class LossScale:
    """A power of two, halved when gradients overflow and doubled when they long have not.

    Attributes:
        value: What to multiply the loss with.
        skipped: How many steps were lost to overflow.

    Source:
        Micikevicius et al., *Mixed precision training*, ICLR 2018, section 3.2.
    """

    def __init__(self) -> None:
        self.value, self.good, self.skipped = 2.0**16, 0, 0

    def update(self, finite: bool) -> None:
        """Take note of whether the last gradients were in range."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.skipped += 1
            self.value /= 2
        elif self.good == GROWTH_INTERVAL:
            self.value, self.good = self.value * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to an earlier state."""
        vars(self).update(state)
