"""What everything owes that stores images: it tells what there is, and removes what it is told, never what is used."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from registry_hooks.model_version import ModelVersion
from serving.build_records import BuildRecords
from serving.docker_engine import Engine
from serving.docker_stock import EngineShelf
from serving.environment import Environments
from serving.image import BuildState, ImageError, ImageRequest, ImageStatus
from serving.image_context import Context, Entry
from serving.local_image import LocalImage, LocalImageBuilder
from serving.local_state import Folder, Record
from serving.local_stock import LocalShelf
from serving.revision import Revision
from serving.stock import ImageStock, Kind, Removal, Stock, Stored
from serving.workshop import workshop
from tests.contract.test_image import built, request_for
from tests.fakes.stock import FakeStock
from tests.fixtures.engines import ENGINES, engine_of
from tests.fixtures.revisions import with_kept_environments, with_kept_images

pytestmark = pytest.mark.timeout(900)
"""The first image of all takes minutes on a busy machine."""
CHURN = [ModelVersion("churn", version) for version in range(3)]


@dataclass
class Rig:
    """A stock with the images of versions 1 and 2 of churn, which stand on the same packages."""

    stock: ImageStock
    images: list[str]
    """Their names; the one in front is of no version."""
    used: Callable[[str], AbstractContextManager[None]]
    """An image is in use meanwhile."""
    building: Callable[[], AbstractContextManager[object]]
    """Somebody builds meanwhile."""
    reopen: Callable[[], ImageStock]
    """As another process would have it."""

    def stored(self, kind: Kind) -> dict[str, Stored]:
        return {one.name: one for one in self.reopen().stored() if one.kind is kind}

    def remove(self, *names: str) -> tuple[Removal, ...]:
        return self.stock.remove(lambda _: names)

    @property
    def packages(self) -> set[str]:
        """What both stand on that packages are in."""
        return set(self.stored(Kind.PACKAGES))


def fake_rig() -> Rig:
    now = datetime.now(UTC)
    packages = Stored("packages", Kind.PACKAGES, now, 1000)
    images = [
        Stored(
            f"image-{one.version}", Kind.MODEL, now, 10, {one: now + timedelta(one.version)}, frozenset({"packages"})
        )
        for one in CHURN[1:]
    ]
    stock = FakeStock(packages, *images)
    return Rig(stock, ["", *(one.name for one in images)], stock.used, stock.building, lambda: stock)


class Versions:
    """A registry with a folder for each version."""

    def __init__(self, models: list[Path]) -> None:
        self._models = models

    def download(self, version: ModelVersion, destination: Path) -> Path:
        return Path(shutil.copytree(self._models[version.version], destination))


@dataclass
class Built:
    """A home folder in which both versions were built."""

    home: Path
    models: list[Path]
    images: list[str]

    def builder(self, *, native: bool = False) -> LocalImageBuilder:
        return LocalImageBuilder(self.home, Versions(self.models), native=native)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory, churn_model: Path, kept_images: Path) -> Built:
    folder = tmp_path_factory.mktemp("stock")
    changed = Path(shutil.copytree(churn_model, folder / "changed"))
    (changed / "note.txt").write_text("other weights")
    home = with_kept_images(with_kept_environments(folder / "home"), kept_images)
    made = Built(home, [churn_model, churn_model, changed], [""])
    for version in CHURN[1:]:
        builder = made.builder(native=version == CHURN[2])
        made.images.append(str(built(builder, request_for("churn", version.version)).image))
        builder.close()
    return made


@pytest.fixture
def local(built_once: Built, tmp_path: Path) -> Built:
    """A copy that a test may take apart; of the environments, which others use too, it has all but the packages."""
    home = tmp_path / "home"
    for part in ("builds", "documents", *(f"images/{name}" for name in built_once.images[1:])):
        shutil.copytree(built_once.home / part, home / part)
    lock = json.loads((home / "images" / built_once.images[1] / "image.json").read_text())["lock"]
    for taken in Environments(built_once.home).taken(built_once.models[1], lock):
        copy = home / taken.relative_to(built_once.home)
        copy.parent.mkdir(exist_ok=True)
        if taken.is_dir():
            shutil.copytree(taken, copy, symlinks=True, ignore=shutil.ignore_patterns("site-packages"))
        else:
            shutil.copy(taken, copy)
    return Built(home, built_once.models, built_once.images)


def local_rig(home: Path, images: list[str]) -> Rig:
    @contextmanager
    def used(name: str) -> Iterator[None]:
        image = LocalImage.find(home, name)
        assert image is not None
        with image.held():
            yield

    return Rig(local_stock(home), images, used, lambda: workshop(home / "building"), lambda: local_stock(home))


def local_stock(home: Path) -> Stock:
    return Stock(home, LocalShelf(home))


@contextmanager
def engine_rig(kind: str, home: Path) -> Iterator[Rig]:
    """Small images, made as large ones are: what is in them is nothing to whoever stores them."""
    engine = engine_of(kind, f"promote-stock-{uuid.uuid4().hex[:8]}")
    below = engine.installation
    try:
        packages = f"{below}/packages:1"
        engine.build(Context("scratch", {"packages": Entry(bytes(50_000))}), packages, print)
        images = ["", *(small_image(engine, home, packages, version) for version in CHURN[1:])]

        def stock() -> Stock:
            return Stock(home, EngineShelf(engine, below))

        @contextmanager
        def used(name: str) -> Iterator[None]:
            container = engine.api.create_container(name, command=["nothing"])["Id"]
            yield
            engine.remove(container)

        yield Rig(stock(), images, used, lambda: workshop(home / "building"), stock)
    finally:
        engine.purge(below)
        engine.close()


def small_image(engine: Engine, home: Path, packages: str, version: ModelVersion) -> str:
    labels = {"promote.model": version.model, "promote.version": str(version.version)}
    files = {"model": Entry(f"{version}".encode() * 1000)}
    tag = f"{engine.installation}/churn:{version.version}"
    image = engine.build(Context(packages, files, labels), tag, print)
    BuildRecords(home).keep(ImageRequest(version, "elsewhere", "server"), ImageStatus(BuildState.READY, image))
    return image


@pytest.fixture(params=["fake", "local", *ENGINES])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "fake":
        yield fake_rig()
    elif request.param == "local":
        local: Built = request.getfixturevalue("local")
        yield local_rig(local.home, local.images)
    else:
        with engine_rig(request.param, tmp_path) as made:
            yield made


def test_images_tell_whose_they_are_and_what_they_stand_on(rig: Rig) -> None:
    images = rig.stored(Kind.MODEL)
    first, second = (images[name] for name in rig.images[1:])
    assert set(images) == set(rig.images[1:])
    assert (set(first.versions), set(second.versions)) == ({CHURN[1]}, {CHURN[2]})
    assert first.versions[CHURN[1]] < second.versions[CHURN[2]]
    assert rig.packages
    assert rig.packages <= first.stands_on
    assert rig.packages <= second.stands_on
    assert not first.used
    assert first.size > 0


def test_what_is_told_to_go_is_gone_and_nothing_else(rig: Rig) -> None:
    kept = rig.packages
    (removal,) = rig.remove(rig.images[1])
    assert (removal.stored.name, removal.trouble) == (rig.images[1], "")
    assert set(rig.stored(Kind.MODEL)) == {rig.images[2]}
    assert rig.packages == kept
    assert rig.remove(rig.images[1]) == ()


def test_it_is_told_by_what_there_is(rig: Rig) -> None:
    asked: list[tuple[Stored, ...]] = []

    def none_of(stored: tuple[Stored, ...]) -> tuple[str, ...]:
        asked.append(stored)
        return ()

    assert rig.stock.remove(none_of) == ()
    assert [set(stored) for stored in asked] == [set(rig.reopen().stored())]


def test_everything_may_go_at_once(rig: Rig) -> None:
    gone = rig.stock.remove(lambda stored: [one.name for one in stored])
    assert not any(removal.trouble for removal in gone)
    assert rig.reopen().stored() == ()


def test_what_is_used_says_so_and_is_not_removed(rig: Rig) -> None:
    with rig.used(rig.images[1]):
        assert rig.stored(Kind.MODEL)[rig.images[1]].used
        going = {*rig.images[1:], *rig.packages}
        trouble = {removal.stored.name: removal.trouble for removal in rig.remove(*going)}
        assert trouble[rig.images[1]]
        assert not trouble[rig.images[2]]
        assert all(trouble[name] for name in rig.packages)
        assert set(rig.stored(Kind.MODEL)) == {rig.images[1]}
    assert not any(removal.trouble for removal in rig.remove(rig.images[1], *rig.packages))


def test_nothing_is_removed_while_somebody_builds(rig: Rig) -> None:
    with rig.building():
        with pytest.raises(ImageError, match="is being built") as refused:
            rig.remove(rig.images[1])
        assert refused.value.retryable
        assert set(rig.stored(Kind.MODEL)) == set(rig.images[1:])
    assert len(rig.remove(rig.images[1])) == 1


def test_a_stock_that_cannot_be_read_can_be_asked_again() -> None:
    stock = FakeStock()
    stock.broken = True
    asks: list[Callable[[], object]] = [stock.stored, lambda: stock.remove(lambda _: ())]
    for ask in asks:
        with pytest.raises(ImageError) as refused:
            ask()
        assert refused.value.retryable


# What is stored on this machine.


def test_an_image_that_a_revision_runs_is_in_use(local: Built) -> None:
    revision = Revision(CHURN[1], local.images[1])
    Folder(local.home / "revisions" / revision.id).save(Record(revision, 8080, 0.0))
    stock = local_stock(local.home)
    used = {one.name: one.used for one in stock.stored() if one.kind is Kind.MODEL}
    assert used == {local.images[1]: revision.id, local.images[2]: ""}


def test_a_removed_image_is_missing_and_its_documents_stay(local: Built) -> None:
    stock, builder = local_stock(local.home), local.builder()
    ready = builder.find(request_for("churn", 1))
    assert ready.state is BuildState.READY
    stock.remove(lambda _: [local.images[1]])
    assert LocalImage.find(local.home, local.images[1]) is None
    assert len(list((local.home / "builds").iterdir())) == 1
    assert builder.find(request_for("churn", 1)).state is BuildState.MISSING
    assert builder.find(request_for("churn", 2)).state is BuildState.READY
    for document in ready.documents:
        assert builder.document(document.digest)
    builder.close()


def test_what_a_crash_has_left_goes_with_the_next_removal(local: Built) -> None:
    (left := local.home / "environments" / ".half.1234").mkdir()
    (gone := local.home / "images" / f".{'1' * 64}.gone").mkdir()
    (local.home / "images" / ".same").write_text("2" * 64)
    local_stock(local.home).remove(lambda _: ())
    assert not left.exists()
    assert not gone.exists()
    assert not (local.home / "images" / ".same").exists()
    assert LocalImage.find(local.home, local.images[1]) is not None


def test_an_image_that_is_not_whole_stands_on_nothing_and_can_be_removed(local: Built) -> None:
    (local.home / "images" / local.images[1] / "image.json").write_text("{}")
    rig = local_rig(local.home, local.images)
    assert rig.stored(Kind.MODEL)[local.images[1]].stands_on == frozenset()
    (removal,) = rig.remove(local.images[1])
    assert removal.trouble == ""


@pytest.mark.parametrize("kind", ENGINES)
def test_what_another_installation_made_of_the_same_parts_is_not_mistaken_for_its_own(
    kind: str, tmp_path: Path
) -> None:
    with engine_rig(kind, tmp_path / "one") as one, engine_rig(kind, tmp_path / "other") as other:
        assert one.packages
        assert all(
            rig.stored(Kind.MODEL)[name].stands_on == rig.packages for rig in (one, other) for name in rig.images[1:]
        )
        other.stock.remove(lambda stored: [thing.name for thing in stored])
        assert set(one.stored(Kind.MODEL)) == set(one.images[1:])
        assert one.packages


def test_locks_stay_with_the_image_whose_next_build_would_take_them(local: Built) -> None:
    stored = {one.name: one for one in local_stock(local.home).stored()}
    locks = {name for name, one in stored.items() if one.kind is Kind.LOCK}
    assert len(locks) == 2, "one that serves, and one that compiles"
    assert locks <= stored[local.images[1]].stands_on
