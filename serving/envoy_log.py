"""What one line of Envoy's access log says of an attempt at a revision.

Pure. Read by `monitoring.log_entry`, which has the same names.
"""

from __future__ import annotations

LOG_FIELDS = {
    "type": "%ACCESS_LOG_TYPE%",
    "start": "%START_TIME(%s.%6f)%",
    "ms": "%DURATION%",
    "id": "%REQ(X-REQUEST-ID)%",
    "model": "%METADATA(ROUTE:promote:model)%",
    "step": "%METADATA(ROUTE:promote:step)%",
    "candidate": "%METADATA(ROUTE:promote:candidate)%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "host": "%UPSTREAM_HOST%",
    "revision": "%UPSTREAM_METADATA(promote:revision)%",
    "code": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "began": "%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)%",
    "sent": "%COMMON_DURATION(US_TX_BEG:US_TX_END:us)%",
    "answered": "%COMMON_DURATION(US_RX_BEG:US_RX_END:us)%",
    "took": "%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%",
    "prediction": "%RESP(X-PROMOTE-PREDICTION)%",
    "loss": "%RESP(X-PROMOTE-LOSS)%",
    "copy": "%REQ(X-PROMOTE-COPY)%",
    "entity": "%REQ(X-ENTITY-ID):64%",
}
"""One line of the access log, read by `monitoring/access_log.py`; durations are null where their end never came.

Lines about a copy have the request's id, no model and no step, but the step's mark in ``copy``.
"""
