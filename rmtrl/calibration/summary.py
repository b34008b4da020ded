"""The lines that people read of a calibration."""

from typing import Any

from rmtrl.calibration.report import Calibration
from rmtrl.types import Estimate

_SHOWN = {"ece": "ECE", "nll": "NLL", "brier": "Brier", "overconfidence": "overconfidence"}
_NOT_MEASURED = "not measured"


def summary(result: Calibration) -> dict[str, Any]:
    """Returns the lines that people read: the calibrator, and each figure before and after."""
    before = result.test_before or result.before
    after = result.test_after if result.test_before else result.after
    return {
        "calibrator": f"{result.kind} ({result.reason})",
        "temperature": result.temperature_estimate if result.is_measured else _NOT_MEASURED,
        "fitted on": f"{result.n:,} pairs of {result.prompts:,} prompts; figures on {result.judged_on}",
        "agreement": before["agreement"],
        **{
            name: f"{_short(before[key])} -> {_short(after[key]) if after else _NOT_MEASURED}"
            for key, name in _SHOWN.items()
        },
        "NLL change": (
            f"{_short(result.nll_change)}{', surely worse' * result.made_worse}"
            if result.nll_change
            else _NOT_MEASURED
        ),
        "ECE if calibrated": f"{_short((after or before)['null_ece'])} at this n",
    }


def _short(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
