"""What people, machines and chance do to a world."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipelines.keeping import needed
from pipelines.rollout import Goal, Intent, Origin, Phase
from registry_hooks.model_version import ModelVersion
from serving.revision import RevisionState
from tests.fakes.target import Behaviour

if TYPE_CHECKING:
    from tests.simulation.world import World


def _version(world: World) -> int:
    versions = list(world.registry.models[world.model].versions)
    return world.dice.choice(versions)


def promote(world: World) -> None:
    """A person puts a version into the live channel."""
    version = _version(world)
    world.error_rates.setdefault(version, world.dice.choice((0.01, 0.01, 0.3)))
    if world.channel.name == "champion":
        world.registry.set_alias(world.model, "champion", version)
    else:
        world.registry.transition_stage(world.model, version, "Production", world.dice.random() < 0.5)


def move(world: World) -> None:
    """A person moves a version somewhere else."""
    if world.channel.name == "champion" and world.dice.random() < 0.5:
        world.registry.set_alias(world.model, "champion", None)
    else:
        stage = world.dice.choice(("Staging", "Archived", "None"))
        world.registry.transition_stage(world.model, _version(world), stage)


def register(world: World) -> None:
    version = world.registry.register(world.model).version
    if world.dice.random() < 0.2:
        world.gate_fails.add(version)
    if world.dice.random() < 0.2:
        world.builder.fails[ModelVersion(world.model, version)] = "no such package"


def delete(world: World) -> None:
    if world.dice.random() < 0.3 and len(world.registry.models[world.model].versions) > 2:
        world.registry.delete_version(world.model, _version(world))


def command(world: World) -> None:
    """A command reaches the inbox."""
    if world.store.broken:
        return
    goal = world.dice.choice((Goal.LIVE, Goal.LIVE, Goal.ABORT, Goal.PAUSE, Goal.RESUME, Goal.RESTORE))
    name = f"command-{world.dice.random()}"
    world.store.submit(
        Intent(name, goal, world.channel, world.model, _version(world), Origin.COMMAND, world.now, actor="someone")
    )


def fault(world: World) -> None:
    """A port fails, or works again."""
    port: Any = world.dice.choice(
        (world.registry, world.target, world.router, world.builder, world.blocks, world.store)
    )
    port.broken = not port.broken


def death(world: World) -> None:
    """A revision ends by itself, or the next ones behave badly."""
    running = [key for key, status in world.target.seen.items() if status.state is RevisionState.READY]
    if running and world.dice.random() < 0.5:
        key = world.dice.choice(running)
        if key in world.target._running:
            world.target.kill(key)
    world.target.behaviour = world.dice.choice(
        (Behaviour(), Behaviour(), Behaviour(ready_after=6), Behaviour(ready_after=10**6), Behaviour(dies_after=3))
    )


def break_policy(world: World) -> None:
    """The model's policy cannot be read any more, or again."""
    world.policy_broken = not world.policy_broken


def restart_gateway(world: World) -> None:
    world.router.restart(lose=world.dice.random() < 0.3)


def clean(world: World) -> None:
    """Somebody removes images that nothing needed a moment ago: a rollout may have begun since and found its own."""
    if world.store.broken:
        return
    older = [rollout for rollout in world.store.active() if rollout.phase not in BEGUN_SINCE]
    needs = needed(older, [], world.store.lives()).images
    for image in world.builder.images() - world.target.images() - needs.keys():
        world.builder.forget(image)


def crash(world: World) -> None:
    """The controller is killed between two rounds."""
    world.starts()


BEGUN_SINCE = (Phase.CHECKING, Phase.BUILDING, Phase.STARTING)
"""Phases that a rollout may be in that began a moment ago."""
EVENTS: list[Callable[[World], None]] = [
    promote, promote, promote, move, register, delete, command, fault, fault, death, restart_gateway, crash,
    break_policy, clean,
]  # fmt: skip
