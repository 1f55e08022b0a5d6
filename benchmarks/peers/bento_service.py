"""BentoML: a service with its adaptive batching on, as its documentation shows it. Runs in BentoML's environment."""

import os
from typing import Any

import bentoml
import numpy as np

from benchmarks.peers.scoring import Predictor


@bentoml.service(
    workers=int(os.environ["PEER_WORKERS"]), traffic={"timeout": 30}, logging={"access": {"enabled": False}}
)
class Scoring:
    def __init__(self) -> None:
        self.predictor = Predictor(os.environ["PEER_MODEL"])

    @bentoml.api(batchable=True, batch_dim=0, max_batch_size=256, max_latency_ms=1000)
    def predict(self, rows: list[list[Any]]) -> list[Any]:
        return list(np.asarray(self.predictor.predict(rows)).tolist())
