"""What becomes known of answers afterwards decides with: nothing else tells a version that has learnt the opposite."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.e2e.loop import MODEL_CODE, Loop, until

RATE = 60.0


class Customers:
    """Ask at a steady rate, and tell what would have been right: the number that they asked with."""

    def __init__(self, loop: Loop, model: str) -> None:
        self.telling = True
        self.failed = 0
        self._loop, self._model = loop, model
        self._known: list[dict[str, object]] = []

    def ask(self, over: threading.Event) -> None:
        with httpx.Client(timeout=30.0) as client:
            while not over.wait(1 / RATE):
                x = random.uniform(0.001, 1.0)
                body = json.dumps({"dataframe_split": {"columns": ["x"], "data": [[x]]}})
                answer = client.post(self._loop.url(self._model), content=body, headers=JSON)
                self.failed += not answer.is_success
                self._known.append({"request_id": answer.headers["x-request-id"], "label": x})

    def tell(self, over: threading.Event) -> None:
        while not over.wait(1.0):
            if self.telling and self._known:
                told, self._known = self._known, []
                httpx.post(f"{self._loop.api_url}/labels", json={"labels": told}, timeout=30.0).raise_for_status()


JSON = {"content-type": "application/json"}


@contextmanager
def customers(loop: Loop, model: str) -> Iterator[Customers]:
    asking, over = Customers(loop, model), threading.Event()
    threads = [threading.Thread(target=work, args=(over,)) for work in (asking.ask, asking.tell)]
    for thread in threads:
        thread.start()
    try:
        yield asking
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def test_labels_open_the_way_and_close_it(loop: Loop) -> None:
    model = "labels-story"
    first = loop.register(model)
    loop.transition(model, first, "Production")
    loop.await_state(model, first, "succeeded")
    with customers(loop, model) as asking:
        # given customers who do not tell yet whether an answer was right
        asking.telling = False
        good = loop.register(model)
        loop.transition(model, good, "Production")
        # then a version that proves everything else waits for that before it gets all traffic
        until(lambda: "mean loss by labels" in _reason(loop, model), 180, "it waits for labels at the last step")
        assert loop.state(model, good) == "progressing"
        time.sleep(2.0)
        assert loop.state(model, good) == "progressing"
        # when they tell, it goes live
        asking.telling = True
        loop.await_state(model, good, "succeeded")

        # when a version comes that answers the other way round, as often high and as often low as before
        reverse = loop.register(model, code=MODEL_CODE.format(share=0.0, factor="-1.0 + 1.0"))
        loop.transition(model, reverse, "Production")
        loop.await_state(model, reverse, "failed")
    assert asking.failed == 0
    reason = loop.tags(model, reverse)["promote.reason"]
    assert reason.startswith("Worse: mean loss by labels above the stable one, 0.")
    assert loop.served(model) == str(good)


def _reason(loop: Loop, model: str) -> str:
    (status,) = loop.ask(f"/models/{model}")["models"]
    return "".join(str(rollout["reason"]) for rollout in status["rollouts"])
