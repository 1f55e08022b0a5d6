"""What the model server needs beside the model's own requirements, in bounds as wide as it was written for.

Plain data, so that whoever builds an environment can read it without importing the server.
"""

from __future__ import annotations

REQUIREMENTS = (
    "fastapi>=0.100,<1",
    "fsspec>=2023.1",
    "grpcio>=1.60,<2",
    "httptools>=0.5,<1",
    "msgspec>=0.18,<1",
    "numpy>=1.22",
    "orjson>=3.9,<4",
    "prometheus-client>=0.15,<1",
    "protobuf>=4.21",
    "pyarrow>=14",
    "uvicorn>=0.23,<1",
    "uvloop>=0.17,<1",
)
"""In every model's environment."""

STORES = {
    "s3": "s3fs>=2023.1",
    "s3a": "s3fs>=2023.1",
    "gcs": "gcsfs>=2023.1",
    "gs": "gcsfs>=2023.1",
    "abfs": "adlfs>=2023.1",
    "abfss": "adlfs>=2023.1",
    "az": "adlfs>=2023.1",
}
"""What reads and writes a store that is no web server, by how its URLs begin."""

COMPILED = ("onnxruntime>=1.21,<2",)
"""Also in the environment of models that may be compiled; left out where the model's requirements do not allow it."""

_TREES = ("onnx>=1.16,<2", "onnxmltools>=1.12,<2", "skl2onnx>=1.17,<2")

CONVERTERS = {
    "sklearn": _TREES,
    "xgboost": _TREES,
    "lightgbm": _TREES,
    "pytorch": ("onnx>=1.16,<2", "onnxscript>=0.1,<1"),
    "onnx": ("onnx>=1.16,<2",),
}
"""What compiling takes besides, by MLflow's name of the flavour; flavours that are not here are not compiled."""
