"""The whole story on one machine, told and checked as it goes: ``make demo``.

A first model goes live from an empty channel, a better one replaces it, a faulty one is stopped before it meets
anybody, one that answers the wrong way round is taken back, and a change of the customers is noticed. Real parts
only: MLflow with SQLite, Envoy, model servers, requests. Every figure is counted by the callers or read from the
product's history. A story that does not come true ends with exit code 1 and says what did not. ``KEEP=1 make demo``
leaves everything running afterwards.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient

from examples.alerts import AlertInbox
from examples.cluster import DemoNamespace
from examples.customers import NEW_TARIFF, churn_probability, draw
from examples.ending import clear_away, tell_where
from examples.installation import Installation, wait_for
from examples.stage import MODEL, Ended, Stage
from examples.telling import StoryError, Teller
from examples.traffic import Traffic

RATE = 120.0
"""Requests a second; what two small cores carry with room to spare."""
POLICIES = Path(__file__).parent / "policies"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    keep, home = bool(os.environ.get("KEEP")), Path(tempfile.mkdtemp(prefix="mlflow-promote-demo-"))
    try:
        stage = set_up(home)
    except StoryError as error:
        home.rmdir()
        print(f"error: {error}", file=sys.stderr)
        return 2
    code = 1
    try:
        tell(stage)
        code = 0
    except StoryError as error:
        stage.teller.failed(f"{error}\n{stage.installation.last_words()}")
    except KeyboardInterrupt:
        code = 130
    finally:
        stage.traffic.stop()
        if keep:
            tell_where(stage, home)
        else:
            code = clear_away(stage, home) or code
        stage.inbox.close()
    return code


def set_up(home: Path) -> Stage:
    cluster = DemoNamespace(home / "predictions") if os.environ.get("TARGET") == "kubernetes" else None
    inbox = AlertInbox()
    installation = Installation(home, POLICIES, inbox.url, cluster)
    url = f"{installation.gateway_url}/models/{MODEL}/invocations"
    registry = MlflowClient(tracking_uri=installation.mlflow_url, registry_uri=installation.mlflow_url)
    return Stage(Teller(), installation, inbox, Traffic(url, RATE, draw(5_000, 21)), registry)


def tell(stage: Stage) -> None:
    begin(stage)
    endings = [first(stage), better(stage), faulty(stage), reversed_(stage)]
    changed(stage)
    tell_figures(stage, endings)


def begin(stage: Stage) -> None:
    teller = stage.teller
    teller.chapter("MLflow, the controller and the gateway start")
    teller.say("$ mlflow-promote up")
    stage.installation.start()
    teller.say(f"MLflow's UI is at {stage.installation.mlflow_url}, on SQLite in a folder that goes when this ends")
    teller.say(f"The customers are simulated: {churn_probability(draw(20_000, 20)).mean():.0%} leave, and we know who")


def first(stage: Stage) -> Ended:
    teller = stage.teller
    teller.chapter("Version 1 goes live from an empty channel")
    version = stage.train("v1")
    teller.say("Somebody moves it to Production in MLflow; that is all. Its environment is made, which takes longest")
    stage.traffic.start()
    ended = stage.move(version)
    teller.check(ended.rollout["phase"] == "succeeded", f"version {version} is live")
    teller.check(stage.stage_of(version) == "Production", f"MLflow shows version {version} in Production")
    teller.check(stage.ask()["version"] == str(version), f"a caller is answered: {stage.ask()['answer']}")
    teller.say(f"From now on callers ask {RATE:.0f} times a second, or as often as this machine can, without a pause")
    return ended


def better(stage: Stage) -> Ended:
    teller = stage.teller
    teller.chapter("Version 2 is better, and replaces it under traffic")
    stable, version = stage.live(), stage.train("better")
    gain = stage.auc(version) - stage.auc(stable)
    teller.check(gain > 0.05, f"on customers it never saw, its AUC is {gain:.3f} higher")
    ended = stage.promote(version)
    teller.check(ended.rollout["phase"] == "succeeded", f"version {version} is live: {ended.rollout['reason']}")
    teller.check(stage.stage_of(version) == "Production", f"MLflow shows version {version} in Production")
    teller.check(stage.stage_of(stable) == "Archived", f"and version {stable} in Archived")
    stage.await_alone(version)
    teller.check(ended.seen.failures == 0, f"in the meantime {ended.seen}")
    return ended


def faulty(stage: Stage) -> Ended:
    teller = stage.teller
    teller.chapter("Version 3 looks as good, fails for some customers, and never meets one")
    version = stage.train("faulty")
    teller.say("Its encoder never met the customers of one region, and no check of its author did either")
    ended = _taken_back(stage, version)
    teller.check(ended.first_request is None, "the last logged requests were enough: no caller's reached it")
    return ended


def reversed_(stage: Stage) -> Ended:
    teller = stage.teller
    teller.chapter("Version 4 answers everything, the wrong way round, and is taken back")
    version = stage.train("reversed")
    teller.say("In its author's extract 1 meant 'stays'; its hold-out says the same, and nothing fails")
    ended = _taken_back(stage, version)
    teller.check(ended.seen.served_by(version) > 0, f"{ended.seen.served_by(version):,} requests were enough to see it")
    return ended


def _taken_back(stage: Stage, version: int) -> Ended:
    teller, stable = stage.teller, stage.live()
    teller.say("Somebody moves it to Production in MLflow")
    ended = stage.move(version)
    teller.check(ended.rollout["phase"] == "failed", f"version {version} is taken back: {ended.rollout['reason']}")
    teller.check(stage.stage_of(version) == "None", f"MLflow shows version {version} back in stage None")
    teller.check(stage.stage_of(stable) == "Production", f"and version {stable} in Production")
    tags = stage.version(version).tags
    teller.check(tags.get("promote.state") == "failed", f"its tags say why: {tags.get('promote.reason')}")
    wait_for(lambda: stage.alerts(f"{MODEL} {version} failed"), 30.0, "an alert about the rollout")
    teller.alert(stage.alerts(f"{MODEL} {version} failed")[0]["title"])
    stage.await_alone(stable)
    teller.check(ended.seen.failures == 0, f"in the meantime {ended.seen}")
    return ended


def changed(stage: Stage) -> None:
    teller, version = stage.teller, stage.live()
    teller.chapter("The customers change, and the scheduled check notices")
    wait_for(lambda: stage.checks(version, "stable"), 120.0, f"a check of version {version} that finds nothing")
    teller.check(
        not stage.alerts("drifted"), f"as long as nothing changes: {stage.checks(version, 'stable')[-1]['text']}"
    )
    stage.traffic.change(draw(5_000, 22, world=NEW_TARIFF))
    teller.say("From now on a dearer tariff without a fixed term is sold")
    since = time.monotonic()
    wait_for(lambda: stage.alerts("inputs drifted") or stage.alerts("predictions drifted"), 180.0, "an alert")
    teller.alert(stage.alerts("drifted")[0]["text"])
    teller.check(bool(stage.checks(version, "drifted")), f"noticed {time.monotonic() - since:.0f} s after the change")
    wait_for(lambda: stage.alerts("predictions drifted"), 180.0, "an alert that the predictions drifted")
    if len(stage.alerts("drifted")) > 1:
        teller.say("That check still saw rows from before the change; the next one sees only new ones")
        teller.alert(stage.alerts("predictions drifted")[0]["text"])
    tag = stage.version(version).tags.get("promote.drift")
    teller.check(tag == "drifted", f"MLflow shows it on version {version}: promote.drift = {tag}")
    teller.check(stage.live() == version, "the policy asks for an alert only, so the traffic stays where it is")


def tell_figures(stage: Stage, endings: list[Ended]) -> None:
    seen, teller = stage.traffic.seen, stage.teller
    teller.table(
        "Seconds from the transition; requests of the rollout, as their callers saw them",
        ["version", "first request", "verdict", "", "by stable", "by candidate", "failed", "stage in MLflow"],
        [_row(ended, stage.stage_of(ended.version)) for ended in endings],
    )
    teller.check(seen.failures == 0, f"in {teller.seconds():.0f} s {seen}")


def _row(ended: Ended, now: str) -> list[str]:
    previous = ended.rollout["previous"]
    return [
        f"{MODEL} {ended.version}",
        "-" if ended.first_request is None else f"{ended.first_request:.1f}",
        f"{ended.verdict:.1f}",
        "live" if ended.rollout["phase"] == "succeeded" else "taken back",
        f"{ended.seen.served_by(previous):,}" if previous else "-",
        f"{ended.seen.served_by(ended.version):,}",
        f"{ended.seen.failures:,}",
        now,
    ]


if __name__ == "__main__":
    sys.exit(main())
