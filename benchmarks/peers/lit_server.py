"""LitServe: its batching on, as its documentation shows it. Runs in LitServe's environment."""

import os
from typing import Any

import litserve
import numpy as np

from benchmarks.peers.scoring import Predictor


class Scoring(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.predictor = Predictor(os.environ["PEER_MODEL"])

    def decode_request(self, request: dict[str, Any]) -> list[list[Any]]:
        return list(request["rows"])

    def batch(self, inputs: list[list[list[Any]]]) -> tuple[list[list[Any]], list[int]]:
        return [row for rows in inputs for row in rows], [len(rows) for rows in inputs]

    def predict(self, batch: tuple[list[list[Any]], list[int]]) -> tuple[Any, list[int]]:
        return np.asarray(self.predictor.predict(batch[0])), batch[1]

    def unbatch(self, output: tuple[Any, list[int]]) -> list[Any]:
        return np.split(output[0], np.cumsum(output[1])[:-1])

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Scoring(max_batch_size=64, batch_timeout=0.005),
        accelerator="cpu",
        workers_per_device=int(os.environ["PEER_WORKERS"]),
    )
    server.run(port=int(os.environ["PEER_PORT"]), host="127.0.0.1", generate_client_file=False, log_level="warning")
