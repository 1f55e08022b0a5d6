"""A data plane in memory. What was asked for takes effect a little later, as with the real one."""

from __future__ import annotations

from collections.abc import Mapping

from serving.router import Route, RouterError


class FakeRouter:
    """Routes asked for come into force at the `delay`-th `get_weights` after they were asked for."""

    def __init__(self, delay: int = 0) -> None:
        self.delay = delay
        self.broken = False
        """Unreachable: every call fails and nothing changes."""
        self._asked: dict[str, Route] = {}
        self._force: dict[str, Route] = {}
        self._wait: dict[str, int] = {}

    def set_weights(self, route: Route) -> None:
        self._check()
        if self._asked.get(route.model) != route:
            self._asked[route.model] = route
            self._wait[route.model] = self.delay

    def get_weights(self) -> Mapping[str, Route]:
        self._check()
        for model, left in [*self._wait.items()]:
            self._wait[model] = left - 1
            if left <= 0:
                self._apply(model)
        return dict(self._force)

    def remove(self, model: str) -> None:
        self._check()
        if self._asked.pop(model, None) is not None:
            self._wait[model] = self.delay

    def restart(self, *, lose: bool = False) -> None:
        """Start empty; what was asked for comes back into force later, unless the configuration was lost too."""
        self._force.clear()
        if lose:
            self._asked.clear()
        self._wait = dict.fromkeys(self._asked, self.delay)

    def _apply(self, model: str) -> None:
        del self._wait[model]
        if model in self._asked:
            self._force[model] = self._asked[model]
        else:
            self._force.pop(model, None)

    def _check(self) -> None:
        if self.broken:
            raise RouterError("the gateway does not answer", retryable=True)
