"""What the model server needs beside the model's own requirements, in bounds as wide as it was written for.

Plain data, so that whoever builds an environment can read it without importing the server.
"""

from __future__ import annotations

REQUIREMENTS = (
    "fastapi>=0.100,<1",
    "fsspec>=2023.1",
    "prometheus-client>=0.15,<1",
    "pyarrow>=14",
    "uvicorn[standard]>=0.23,<1",
)
