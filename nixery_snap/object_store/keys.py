"""The key tree of the object store; nothing else makes keys.

    blobs/<algorithm>/<first 2 hex digits>/<hex>   content as served: layers, image configs, manifests
    records/<kind>/<first 2 of key>/<key>.json     what was found out, by a key of its input:
        resolution    packages of a request at a revision -> derivations and outputs
        package       an attribute at a revision, for a system -> its derivation and outputs
        image         request at a revision -> manifest, packages, closure
        layer         store paths with their NAR hashes and the codec -> layer
        recipe        a classic layer's digest -> the store paths and the codec that it is made of
        member        one store path, NAR hash and codec -> where its gzip member stands in a layer
        index         a revision of a source and a system -> the blobs with its packages, by attribute
        index-part    some attributes of that -> the blob with what they evaluate to
        narinfo       a substituter, its trusted keys and a hash part -> the narinfo that was verified
        signing-key   `in-use` -> the public key that this store's narinfos are signed with
        roots         substituters, store paths and NAR hashes -> listings of those roots that are no directories
        root, tree    a substituter, a store path and its NAR hash -> what its NAR told: its root, all of it
    names/<name of an image, its slashes as commas>  the key of the newest image record under it
    pins/<digest of source and tag>.json           what a moving tag meant when its source was last asked, and when
    nix-cache-info, <hash part>.narinfo, <hash part>.ls, nar/<file hash>.nar.<compression>, log/<derivation>
                                                   our own binary cache; a narinfo comes after its NAR
    leases/<key>.<number>                          a sign of life of whoever makes the image of that key
    format                                         of the version of this tree, in buckets
    usage/<time>-<process>                         images, manifests, paths and indexes that were asked for, until then
    usage/begin                                    since when nothing was asked for without being written down
    sweep.json                                     what garbage collection is doing, or did last
    staging/                                       what is being written
    secrets/                                       keys of this server, on local directories only; no objects
    separate/<source>/                             all of the above but pins and secrets once more, for a source that
                                                   the settings keep separate

A record is written after everything that it names, and neither blobs nor records are ever changed; pins and names
are. So any prefix of the writes of an interrupted process is a consistent store. Garbage collection (`sweep`) goes the
other way: what names something is removed before it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from nixery_snap.oci.digest import Digest

STAGING: Final = "staging"
FORMAT: Final = "format"
SWEEP: Final = "sweep.json"
USAGE: Final = "usage"
USAGE_BEGIN: Final = "usage/begin"
IMAGE_NAMES: Final = "names"
LEASES: Final = "leases"
_NAME_LENGTH: Final = 200


def blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def record(kind: str, key: str) -> str:
    return f"records/{kind}/{key[:2]}/{key}.json"


def image_name(name: str) -> str:
    """Flat: as a path, `a` would be the folder of `a/b`. Names too long for a file go on in a folder of theirs."""
    text = name.replace("/", ",")
    more = f",/{text[_NAME_LENGTH:]}" if len(text) > _NAME_LENGTH else ""
    return f"{IMAGE_NAMES}/{text[:_NAME_LENGTH]}{more}"


def name_of(key: str) -> str:
    """The image name of such a key."""
    return key.removeprefix(f"{IMAGE_NAMES}/").replace(",/", "").replace(",", "/")


def pin(source: str, tag: str) -> str:
    return f"pins/{hashlib.sha256(json.dumps([source, tag]).encode()).hexdigest()}.json"


def lease(key: str, number: int) -> str:
    return f"{LEASES}/{key}.{number}"


def cache_file(name: str) -> str:
    """The layout of binary caches has no folder of its own: the bucket itself must be a substituter."""
    return name
