import asyncio
import copy
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nixery_snap.errors import InvalidImage
from nixery_snap.imaging.assemble import NIX_LAYER, NIX_STORE_PATH
from nixery_snap.imaging.request import ImageFormat
from nixery_snap.imaging.validate import validate
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.media_types import DOCKER_LAYER_GZIP
from tests.unit.images import ImageMaker, Opened, package, sample_store
from tests.unit.stores import store_path

CLASSIC, SNAPSHOTTER = ImageFormat.CLASSIC, ImageFormat.SNAPSHOTTER
FORMATS = (CLASSIC, SNAPSHOTTER)
TOOL, LIBRARY, SCRIPT = (f"nix/store/{store_path(name).base_name}" for name in ("tool", "library", "script"))
ABSENT = store_path("absent")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[ImageFormat, Opened]:
    async def make() -> dict[ImageFormat, Opened]:
        store, tool = sample_store(tmp_path_factory.mktemp("store"))
        maker = ImageMaker(store)
        return {kind: Opened.of(await maker(kind, package(tool)), maker.blobs.read) for kind in FORMATS}

    return asyncio.run(make())


@pytest.fixture
def image(samples: dict[ImageFormat, Opened], request: pytest.FixtureRequest) -> Opened:
    return copy.deepcopy(samples[request.param])


def member(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in {"mtime": 1, "mode": 0o755, "type": tarfile.DIRTYPE, **fields}.items():
        setattr(info, key, value)
    return info, bytes(info.size)


Mutation = Callable[[Opened], object]


def change(name: str, **fields: Any) -> Mutation:
    """Of one member's header."""

    def apply(image: Opened) -> None:
        info = image.find(name)
        for key, value in fields.items():
            setattr(info, key, value)

    return apply


def insert(name: str, place: int | None = None, **fields: Any) -> Mutation:
    """A member into the last layer, where it belongs unless a place is given."""

    def apply(image: Opened) -> None:
        image.last.append(member(name, **fields))
        if place is None:
            image.last.sort(key=lambda item: item[0].name.split("/"))
        else:
            image.last.insert(place, image.last.pop())

    return apply


def drop(name: str) -> Mutation:
    def apply(image: Opened) -> None:
        for layer in image.layers:
            layer[:] = [item for item in layer if item[0].name != name]

    return apply


def config(**values: Any) -> Mutation:
    return lambda image: setattr(image, "edit_config", lambda made: made.update(values))


def manifest(edit: Callable[[dict[str, Any]], object]) -> Mutation:
    return lambda image: setattr(image, "edit_manifest", edit)


def blob(edit: Callable[[bytes], bytes]) -> Mutation:
    return lambda image: setattr(image, "edit_blob", edit)


def tar(edit: Callable[[bytes], bytes]) -> Mutation:
    return lambda image: setattr(image, "edit_tar", edit)


def annotate(key: str, value: str | None) -> Mutation:
    def apply(image: Opened) -> None:
        if value is None:
            del image.annotations[key]
        else:
            image.annotations[key] = value

    return apply


def corrupt(blob_of: Callable[[Opened], str], content: bytes | None) -> Mutation:
    """Let the store answer something else for a blob, or nothing."""

    def edit(image: Opened) -> None:
        digest = blob_of(image)
        if content is None:
            del image.blobs[digest]
        else:
            image.blobs[digest] = content

    def apply(image: Opened) -> None:
        image.edit_manifest = lambda _made: edit(image)

    return apply


def _config_digest(image: Opened) -> str:
    return str(image.manifest["config"]["digest"])


def _layer_digest(image: Opened) -> str:
    return str(image.manifest["layers"][-1]["digest"])


def _header_checksum(content: bytes) -> bytes:
    """Break the header of a member in the middle."""
    place = content.rindex(b"ustar") - 257
    return content[: place + 100] + b"0000711" + content[place + 107 :]


def _without_end(content: bytes) -> bytes:
    """The members alone."""
    members = content.rstrip(b"\0")
    return members.ljust(-(-len(members) // 512) * 512, b"\0")


def other_diff_id(made: dict[str, Any]) -> None:
    made["rootfs"]["diff_ids"][0] = str(Digest.of(b"other"))


def second_layer(image: Opened) -> None:
    image.layers += copy.deepcopy(image.layers[:1])
    image.manifest["layers"] += copy.deepcopy(image.manifest["layers"][:1])
    image.config["history"] += image.config["history"][:1]


BOTH: dict[str, tuple[Mutation, str]] = {
    "uid": (change("etc", uid=1000), "'etc' .* is not root's"),
    "gid": (change("tmp", gid=5), "'tmp' .* is not root's"),
    "user name": (change("tmp", uname="root"), "'tmp' .* is not root's"),
    "mtime": (change("etc/passwd", mtime=0), "'etc/passwd' .* has the time 0"),
    "order": (lambda image: image.last.append(image.last.pop(0)), "are not sorted"),
    "twice": (insert("tmp", mode=0o1777), "'tmp' .* twice"),
    "no parent": (drop("etc"), "'etc/.*' .* has no parent before it"),
    "parent is no directory": (
        change("bin", type=tarfile.SYMTYPE, linkname=f"/{TOOL}/bin"),
        "'bin/tool' .* has no parent",
    ),
    "absolute name": (insert("/abs", 0), "'/abs' .* plain relative name"),
    "dotted name": (insert("a/../b", 0), "plain relative name"),
    "device": (insert("zero", type=tarfile.CHRTYPE), "'zero' .* is of type b'3'"),
    "hard link": (insert("zero", type=tarfile.LNKTYPE, linkname="etc/passwd"), "'zero' .* is of type b'1'"),
    "pipe": (insert("zero", type=tarfile.FIFOTYPE), "'zero' .* is of type b'6'"),
    "no /tmp": (drop("tmp"), "there is no directory /tmp"),
    "/tmp is a file": (change("tmp", type=tarfile.REGTYPE), "there is no directory /tmp"),
    "/etc is a link": (change("etc", type=tarfile.SYMTYPE, linkname=f"/{TOOL}/etc"), "no directory /etc"),
    "link out of the image": (
        change("bin/tool", linkname="/usr/bin/tool"),
        "bin/tool points out of the image",
    ),
    "link to an absent path": (
        change("bin/tool", linkname=f"{ABSENT}/bin/x"),
        "bin/tool points out of the image",
    ),
    "diff_id": (
        lambda image: setattr(image, "edit_config", other_diff_id),
        "diff_ids are not those of the layers",
    ),
    "diff_ids": (config(rootfs={"type": "layers", "diff_ids": []}), "diff_ids are not those"),
    "history": (config(history=[]), "history does not have one entry a layer"),
    "architecture": (config(architecture="x86"), "unknown platform"),
    "os": (config(os="windows"), "unknown platform"),
    "config without rootfs": (config(rootfs=None), "config is malformed"),
    "config is no JSON": (corrupt(_config_digest, b"{"), "config is malformed"),
    "config is missing": (corrupt(_config_digest, None), "blob sha256:.* is missing"),
    "layer is missing": (corrupt(_layer_digest, None), "blob sha256:.* is missing"),
    "other layer": (corrupt(_layer_digest, b"other"), "has another digest"),
    "layer's size": (
        manifest(lambda made: made["layers"][-1].update(size=made["layers"][-1]["size"] + 1)),
        r"sha256:.* has \d+ bytes",
    ),
    "config's size": (manifest(lambda made: made["config"].update(size=1)), r"sha256:.* has \d+ bytes"),
    "layer's media type": (
        manifest(lambda made: made["layers"][-1].update(mediaType=DOCKER_LAYER_GZIP)),
        "media type",
    ),
    "config's media type": (
        manifest(lambda made: made["config"].update(mediaType="text/plain")),
        "media type",
    ),
    "manifest version": (manifest(lambda made: made.update(schemaVersion=1)), "schemaVersion must be 2"),
    "manifest without layers": (manifest(lambda made: made.pop("layers")), "layers"),
    "huge manifest": (
        manifest(lambda made: made.update(annotations={"x": "y" * 2**22})),
        r"manifest has \d+ bytes",
    ),
    "layer is no gzip": (blob(lambda content: b"plain"), "layer .* cannot be read"),
    "layer is cut short": (blob(lambda content: content[:-1]), "gzip data ends too early"),
    "layer is damaged": (blob(lambda content: content[:-8] + bytes(8)), "damaged compressed data"),
    "something behind the layer": (blob(lambda content: content + b"junk"), "damaged compressed data"),
    "tar is cut short": (tar(lambda content: content[:700]), "layer .* cannot be read"),
    "empty tar": (tar(lambda content: b""), "layer .* cannot be read"),
    "tar header is damaged": (tar(_header_checksum), "layer .* cannot be read"),
    "tar has no end": (tar(_without_end), "layer .* cannot be read"),
    "something behind the tar": (tar(lambda content: content + b"junk" * 128), "behind the end"),
}
SNAPSHOTTER_ONLY: dict[str, tuple[Mutation, str]] = {
    "not true": (annotate(NIX_LAYER, "yes"), f"{NIX_LAYER} is not true"),
    "gap": (annotate(f"{NIX_STORE_PATH}0", None), "are not numbered 0, 1"),
    "other numbering": (
        lambda image: image.annotations.update(
            {f"{NIX_STORE_PATH}x": image.annotations.pop(f"{NIX_STORE_PATH}3")}
        ),
        "are not numbered 0, 1",
    ),
    "path twice": (
        lambda image: image.annotations.update(
            {f"{NIX_STORE_PATH}4": image.annotations[f"{NIX_STORE_PATH}0"]}
        ),
        "a store path is annotated twice",
    ),
    "path without mountpoint": (
        annotate(f"{NIX_STORE_PATH}4", str(ABSENT)),
        "mountpoints and annotations differ",
    ),
    "mountpoint without path": (annotate(f"{NIX_STORE_PATH}3", None), "mountpoints and annotations differ"),
    "no store path": (annotate(f"{NIX_STORE_PATH}4", "/nix/store/x"), "'/nix/store/x' is no store path"),
    "long label": (annotate("containerd.io/snapshot/x", "y" * 4096), "too long for containerd"),
    "mountpoint is not empty": (insert(f"{TOOL}/bin"), "mountpoint of nix/store/.* is not empty"),
    "mountpoint is a link": (
        change(LIBRARY, type=tarfile.SYMTYPE, linkname="/x"),
        f"{LIBRARY} is no mountpoint",
    ),
    "directory's mode": (change(LIBRARY, mode=0o555), f"{LIBRARY} is no mountpoint"),
    "file's mode": (change(SCRIPT, mode=0o644), f"{SCRIPT} is no mountpoint"),
    "second layer": (second_layer, "has exactly one layer"),
}
CLASSIC_ONLY: dict[str, tuple[Mutation, str]] = {
    "path in two layers": (
        lambda image: (insert("nix", mode=0o755)(image), insert("nix/store")(image), insert(TOOL)(image)),
        "is in the layers 0 and 1",
    ),
    "forest is not on top": (lambda image: image.layers.reverse(), "topmost layer is not the forest"),
    "no store path": (
        lambda image: image.rename(SCRIPT, "nix/store/script"),
        "script in layer 0 is no store path",
    ),
    "store path is missing": (
        lambda image: image.layers.__setitem__(
            0, [item for item in image.layers[0] if not item[0].name.startswith(TOOL)]
        ),
        "bin/tool points out of the image",
    ),
}


CASES = [
    pytest.param(kind, *case, id=f"{kind}: {name}")
    for kinds, cases in ((FORMATS, BOTH), ((SNAPSHOTTER,), SNAPSHOTTER_ONLY), ((CLASSIC,), CLASSIC_ONLY))
    for kind in kinds
    for name, case in cases.items()
]


@pytest.mark.parametrize("image", FORMATS, indirect=True)
def test_a_sound_image_stays_sound_when_it_is_packed_again(image: Opened) -> None:
    digest = image.pack()
    assert len(validate(digest, image.read).layers) == len(image.layers)


@pytest.mark.parametrize(("image", "mutate", "defect"), CASES, indirect=["image"])
def test_each_breach_is_named(image: Opened, mutate: Mutation, defect: str) -> None:
    mutate(image)
    with pytest.raises(InvalidImage, match=f"(?s){defect}"):
        validate(image.pack(), image.read)


@pytest.mark.parametrize("image", FORMATS, indirect=True)
def test_every_defect_is_listed(image: Opened) -> None:
    change("etc", uid=7)(image)
    change("tmp", mtime=9)(image)
    config(os="plan9")(image)
    with pytest.raises(InvalidImage) as raised:
        validate(image.pack(), image.read)
    assert len(raised.value.defects) == 3


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    maker = ImageMaker(sample_store(tmp_path)[0])
    with pytest.raises(InvalidImage, match="is missing"):
        validate(Digest.of(b"nothing"), maker.blobs.read)


@pytest.mark.parametrize("image", FORMATS, indirect=True)
def test_end_of_the_data_that_falls_on_a_record_of_tar(image: Opened) -> None:
    # Readers of tar take whole records of 10,240 bytes and may never see what is wrong behind the last one.
    image.edit_tar = lambda content: content.ljust(-(-len(content) // 10240) * 10240, b"\0")
    image.edit_blob = lambda content: content[:-4]
    with pytest.raises(InvalidImage, match="ends too early"):
        validate(image.pack(), image.read)
