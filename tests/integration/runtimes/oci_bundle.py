"""An OCI layout unpacked by umoci and run by runc: what a container engine does, step by step."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.need import need, need_root
from tests.integration.processes import run
from tests.integration.runtimes.cleanup import remove_empty_cgroups


def copy_from_registry(reference: str, layout: Path) -> str:
    """skopeo copy HOST:PORT/NAME:TAG into a new OCI layout; its image as umoci names it."""
    need("skopeo")
    policy = ["--insecure-policy", "copy", "--src-tls-verify=false"]
    run("skopeo", *policy, f"docker://{reference}", f"oci:{layout}:image")
    return f"{layout}:image"


@dataclass(frozen=True)
class Bundle:
    directory: Path

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs"

    def run(self, *command: str, mounts: Mapping[str, Path] | None = None) -> str:
        """Run with these host paths mounted read-only on mountpoints that must exist already."""
        need("runc")
        need_root()
        config_path = self.directory / "config.json"
        config: dict[str, Any] = json.loads(config_path.read_text())
        process = config["process"]
        process.update(terminal=False, rlimits=[])  # limits may not be raised on every machine
        process["args"] = list(command) or process["args"]
        kept = [mount for mount in config["mounts"] if mount["destination"] != "/sys/fs/cgroup"]
        for mountpoint, source in (mounts or {}).items():
            assert (self.rootfs / mountpoint.lstrip("/")).exists(), f"runc would make {mountpoint}"
            options = ["bind", "ro", "nosuid", "nodev"]
            kept.append(
                {"destination": mountpoint, "type": "bind", "source": str(source), "options": options}
            )
        container = f"test-{uuid.uuid4().hex}"
        config.update(mounts=kept, root={"path": "rootfs", "readonly": True})
        config["linux"].update(cgroupsPath=f"/{container}", resources={})
        config_path.write_text(json.dumps(config))
        state = self.directory / "runc"
        try:
            return run("runc", "--root", state, "run", "--bundle", self.directory, container).stdout
        finally:
            run("runc", "--root", state, "delete", "--force", container, check=False)
            remove_empty_cgroups(container)


def unpack(image: str, directory: Path) -> Bundle:
    """Unpack all layers of `LAYOUT:TAG`, as root with owners and modes kept."""
    need("umoci")
    need_root()
    run("umoci", "unpack", "--image", image, directory)
    return Bundle(directory)
