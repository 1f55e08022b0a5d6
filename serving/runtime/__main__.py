"""``python -m serving.runtime``: one model server.

A compiled model is served by one process, or by several that share it; a model that only its own library can run, by
one process in front and several model processes behind it. A model that is not in the image is fetched before.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import replace

from serving.runtime import json_logs
from serving.runtime.fetch_front import fetched
from serving.runtime.figures import Figures
from serving.runtime.front import Front
from serving.runtime.model_files import check
from serving.runtime.plan import read
from serving.runtime.settings import LogFormat, Settings, parse
from serving.runtime.workers import Workers

_logger = logging.getLogger("serving.runtime")


def main() -> int:
    settings = parse(sys.argv[1:], os.environ)
    json_logs.configure(settings.log_format is LogFormat.JSON)
    try:
        plan, listener = read(settings.plan), _listener(settings)
        model = fetched(settings, plan, listener)
        if model is None:
            return 0
        check(settings.plan, model)
    except (OSError, ValueError, RuntimeError) as error:
        _logger.error("the server cannot start: %s", error)  # noqa: TRY400 - one line, as whoever waits reads it
        return 1
    settings = replace(settings, model=model)
    if plan.compiled is not None and not settings.uncompiled and settings.workers > 1:
        return Workers(settings, plan, listener).run()
    return Front(settings, plan, Figures(settings.origin.model, settings.origin.version), listener).run()


def _listener(settings: Settings) -> socket.socket:
    if settings.descriptor is not None:
        return socket.socket(fileno=settings.descriptor)
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    return listener


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not the usual way out: it would wait for a model that is still being loaded in its thread.
    os._exit(status)
