"""What the controller tells of a model's last requests, calibrated where the command runs.

It takes a processor for half a minute, which the controller has no business giving away.
"""

from __future__ import annotations

from dataclasses import asdict

import msgspec

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import Seen
from monitoring.calibration import CalibrationError, calibrate
from monitoring.ramp import RampPolicy
from monitoring.replay_policy import ReplayPolicy
from pipelines.client import ClientError, Json


def calibrated(recorded: Json, runs: int) -> Json:
    """`ClientError` where too little was recorded."""
    analysis = msgspec.convert(recorded["analysis"], AnalysisPolicy)
    policy = ReplayPolicy(analysis, msgspec.convert(recorded["ramp"], RampPolicy))
    seen = msgspec.convert(recorded["requests"], tuple[Seen, ...])
    try:
        return asdict(calibrate(policy, seen, runs))
    except CalibrationError as error:
        raise ClientError("refused", str(error), "try again after more traffic") from error
