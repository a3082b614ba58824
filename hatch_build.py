"""Builds the kernels together with the package, where that can be done; without them torch does their work.

GALAGO_WHEEL names the platform of a wheel that zig compiles them for (TARGETS in src/galago/kernels/build.py). Such a
wheel has them, or is not made.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class Kernels(BuildHookInterface):
    """For wheels, the editable ones included."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # By its path: the package itself cannot be imported before its dependencies are there.
        script = Path(self.root, "src", "galago", "kernels", "build.py")
        spec = importlib.util.spec_from_file_location("galago_kernels_build", script)
        assert spec is not None and spec.loader is not None
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        if platform := os.environ.get("GALAGO_WHEEL"):
            # Apart from the sources, among which this machine's own library lies.
            library = Path(self.root, "build", "wheels", platform, kernels.LIBRARY.name)
            library.parent.mkdir(parents=True, exist_ok=True)
            try:
                kernels.build_for(platform, library)
            except kernels.CannotBuild as why:
                self.app.abort(f"no wheel for {platform}: {why}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
            build_data["force_include"][str(library)] = f"galago/kernels/{library.name}"
            return
        try:
            library = kernels.build()
        except kernels.CannotBuild as why:
            # What an earlier build left may be of other sources or of another machine.
            kernels.LIBRARY.unlink(missing_ok=True)
            self.app.display_warning(f"galago is built without its kernels ({why}): torch's are used, which are slower")
            return
        # Any Python of this platform can use it. manylinux promises more than was looked at.
        tag = next(t for t in platform_tags() if not t.startswith(("manylinux", "musllinux")))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"
        build_data["artifacts"].append(library.relative_to(self.root).as_posix())
