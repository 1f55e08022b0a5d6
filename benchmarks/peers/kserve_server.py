"""KServe's Python server with a model class, as its documentation shows it. Runs in KServe's environment."""

import os
from typing import Any

import kserve
import numpy as np

from benchmarks.peers.scoring import Predictor


class Scoring(kserve.Model):
    def __init__(self) -> None:
        super().__init__("model")
        self.predictor = Predictor(os.environ["PEER_MODEL"])
        self.ready = True

    def predict(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:  # noqa: ARG002
        return {"predictions": np.asarray(self.predictor.predict(payload["instances"])).tolist()}


if __name__ == "__main__":
    port = int(os.environ["PEER_PORT"])
    kserve.ModelServer(http_port=port, enable_grpc=False, workers=int(os.environ["PEER_WORKERS"])).start([Scoring()])
