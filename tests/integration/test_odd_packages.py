"""Store paths of every shape reach the client as Nix has them, in both formats."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.images import ALWAYS_ADDED, annotated_paths, check_forest, store_names
from tests.integration.nixtools import ChrootStore, add_package, tree_of
from tests.integration.processes import output_of, run
from tests.integration.runtimes.oci_bundle import Bundle, copy_from_registry, unpack
from tests.integration.server import PROGRAM, Registry, Start

# Image name and the attributes that it means.
ODD: dict[str, list[tuple[str, ...]]] = {
    "singlefile": [("singleFile",)],
    "executablefile": [("executableFile",)],
    "symlinkpath": [("symlinkPath",)],
    "dirlink": [("dirLink",)],
    "rootlink": [("rootLink",)],
    "danglinglink": [("danglingLink",)],
    "emptydir": [("emptyDir",)],
    "weirdnames": [("weirdNames",)],
    "longpath": [("longPath",)],
    "manyfiles": [("manyFiles",)],
    "compressible": [("compressible",)],
    "wide": [("wide",)],
    "conflicta/conflictb": [("conflictA",), ("conflictB",)],
    "conflicta/conflictdirectory": [("conflictA",), ("conflictDirectory",)],
    "zlib.dev": [("zlib", "dev")],
    "openssl": [("openssl",)],
    "openssl.dev": [("openssl", "dev")],
    "krb5": [("krb5",)],
    "krb5.lib": [("krb5", "lib")],
    "krb5.dev/krb5.lib/openssl.out": [("krb5", "dev"), ("krb5", "lib"), ("openssl", "out")],
    "python3packages.requests": [("python3Packages", "requests")],
    "7zz": [("_7zz",)],
    "scopetool": [("nodePackages", "@scope/tool")],
}


def wanted_paths(store: ChrootStore, attributes: Sequence[tuple[str, ...]]) -> list[str]:
    installed = store.installed(*attributes, *ALWAYS_ADDED)
    return [path for paths in installed.values() for path in paths]


def fetch(registry: Registry, name: str, directory: Path) -> Bundle:
    return unpack(
        copy_from_registry(f"{registry.host}/{name}:latest", directory / "layout"), directory / "bundle"
    )


@pytest.mark.parametrize("name", ODD)
def test_classic_content_is_the_stores(
    registry: Registry, prepared_store: ChrootStore, directory: Path, name: str
) -> None:
    rootfs = fetch(registry, f"classic/{name}", directory).rootfs
    wanted = wanted_paths(prepared_store, ODD[name])
    closure = prepared_store.closure(wanted)
    assert store_names(rootfs) == closure
    for path in closure:
        assert tree_of(rootfs / path.lstrip("/")) == tree_of(prepared_store.physical(path)), path
    check_forest(rootfs, prepared_store, wanted)


@pytest.mark.parametrize("name", ODD)
def test_snapshotter_mountpoints_have_the_right_type(
    registry: Registry, prepared_store: ChrootStore, directory: Path, name: str
) -> None:
    full_name = f"nix-snapshotter/{name}"
    rootfs = fetch(registry, full_name, directory).rootfs
    wanted = wanted_paths(prepared_store, ODD[name])
    closure = prepared_store.closure(wanted)
    (layer,) = registry.manifest(full_name).json()["layers"]
    assert store_names(rootfs) == closure == set(annotated_paths(layer))
    for path in closure:
        mountpoint = rootfs / path.lstrip("/")
        assert not mountpoint.is_symlink()
        assert mountpoint.is_dir() == prepared_store.shown(path).is_dir(), path
    check_forest(rootfs, prepared_store, wanted)


def check_both_formats(registry: Registry, store: ChrootStore, directory: Path, name: str) -> list[Bundle]:
    """Both images of a package of the registry's own source hold what they must."""
    wanted = [
        path
        for paths in store.installed((name,), *ALWAYS_ADDED, directory=registry.source).values()
        for path in paths
    ]
    bundles = []
    for image_format in ("classic", "nix-snapshotter"):
        place = directory / image_format
        place.mkdir()
        bundle = fetch(registry, f"{image_format}/{name}", place)
        assert store_names(bundle.rootfs) == store.closure(wanted)
        bundles.append(bundle)
    for path in store.closure(wanted):
        assert tree_of(bundles[0].rootfs / path.lstrip("/")) == tree_of(store.physical(path)), path
    return bundles


def test_names_that_are_no_text_and_links_to_anywhere(
    directory: Path, own_store: ChrootStore, own_source: Path, start: Start
) -> None:
    add_package(
        own_source,
        "bytes",
        r"""
        mkdir -p "$out/-dash" "$out/..dots" "$out/trailing " "$out/d/e"
        n=$($bb printf '\377\001'); touch "$out/$n" "$out/d/$n" "$out/back\slash" "$out/d/tab	tab"
        l=$($bb printf '%0255d' 0); echo long > $out/d/$l; echo shared > "$out/d/e/$l"
        t=$($bb printf '%04000d' 0); ln -s "/$t" $out/d/far; ln -s "$n" $out/d/odd; ln -s "a
        b" $out/d/lines; ln -s . $out/d/self; ln -s loop $out/d/loop; : > $out/empty
        """,
    )
    registry = start(Registry(directory / "state", own_store.root, own_source))
    bundles = check_both_formats(registry, own_store, directory, "bytes")
    wanted = own_store.installed(("bytes",), *ALWAYS_ADDED, directory=own_source)
    (built,) = wanted["bytes"]
    assert {b"\xff\x01", b"d/\xff\x01", b"d/e/" + b"0" * 255} <= tree_of(own_store.physical(built)).keys()
    for bundle in bundles:
        check_forest(bundle.rootfs, own_store, [path for paths in wanted.values() for path in paths])


def test_packages_cannot_take_the_images_own_ground(
    directory: Path, own_store: ChrootStore, own_source: Path, start: Start
) -> None:
    """Not the store's place, nor the place for temporary files, by a directory, a file or a link."""
    add_package(
        own_source,
        "hostile",
        """
        mkdir -p $out/nix/store/evil; echo > $out/tmp; ln -s /etc $out/usr; ln -s /proc $out/bin; echo > $out/etc
        ln -s /nix $out/dev; ln -s .. $out/sys
        """,
    )
    registry = start(Registry(directory / "state", own_store.root, own_source))
    for bundle in check_both_formats(registry, own_store, directory, "hostile"):
        temporary = bundle.rootfs / "tmp"
        assert not temporary.is_symlink()
        assert temporary.is_dir()
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o1777
        assert not (bundle.rootfs / "nix").is_symlink()
        assert os.listdir(bundle.rootfs / "nix") == ["store"]
    options = [*registry.options, "--verify"]
    for name in ("hostile/hello", "nix-snapshotter/shell/hostile"):
        run(*PROGRAM, "inspect", name, *options, env=registry.program_env)


def test_everything_is_roots_and_as_old_as_nix_says(registry: Registry, directory: Path) -> None:
    rootfs = fetch(registry, "shell/weirdnames/manyfiles", directory).rootfs
    for place, directories, files in os.walk(os.fsencode(rootfs)):
        for path in (os.path.join(place, name) for name in directories + files):  # noqa: PTH118 - bytes
            status = os.lstat(path)
            assert (status.st_uid, status.st_gid, int(status.st_mtime)) == (0, 0, 1), path


@pytest.mark.parametrize("image_format", ["classic", "nix-snapshotter"])
@pytest.mark.parametrize(
    ("name", "winner"),
    [
        ("conflictb/conflicta", "conflict-a"),  # the name that sorts first
        ("conflicta/conflictb/conflictc", "conflict-c"),  # meta.priority goes before that
        ("conflictd/conflictb", "conflict-b"),
    ],
)
def test_conflicts_in_the_forest(
    registry: Registry, directory: Path, image_format: str, name: str, winner: str
) -> None:
    rootfs = fetch(registry, f"{image_format}/{name}", directory).rootfs
    assert f"-{winner}-1.0/bin" in os.readlink(_first_link(rootfs, "bin", "tool"))


def _first_link(rootfs: Path, *parts: str) -> Path:
    path = rootfs
    for part in parts:
        path /= part
        if path.is_symlink():
            return path
    raise AssertionError(f"no link on the way to {path}")


def test_users_that_a_package_brings_are_not_replaced(
    registry: Registry, prepared_store: ChrootStore, directory: Path
) -> None:
    rootfs = fetch(registry, "ownpasswd", directory).rootfs
    check_forest(rootfs, prepared_store, wanted_paths(prepared_store, [("ownPasswd",)]))
    assert _first_link(rootfs, "etc", "passwd")


def test_a_link_out_of_the_store_is_content_but_never_a_mount(
    registry: Registry, prepared_store: ChrootStore, directory: Path
) -> None:
    """A node would mount its own /etc: hostile. As a link in a classic image it is harmless."""
    rootfs = fetch(registry, "classic/escapelink", directory).rootfs
    (path,) = prepared_store.installed(("escapeLink",))["escapeLink"]
    assert os.readlink(rootfs / path.lstrip("/")) == "/etc"
    refused = run("skopeo", "inspect", "--tls-verify=false",
                  f"docker://{registry.host}/nix-snapshotter/escapelink", check=False)  # fmt: skip
    assert refused.returncode != 0
    assert "classic/" in output_of(refused)
