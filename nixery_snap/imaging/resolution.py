"""What the packages of a request evaluate to, remembered for ever under their revision."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from nixery_snap.errors import PackageProblem, PackagesUnavailable, ProblemKind
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.store_path import StorePath
from nixery_snap.ports import Package


@dataclass(frozen=True, slots=True)
class Resolution:
    """`base` are the packages that every image gets, as far as the package set has them."""

    requested: tuple[Package, ...]
    base: tuple[Package, ...]

    @property
    def all(self) -> tuple[Package, ...]:
        return (*self.base, *self.requested)

    @property
    def packages(self) -> tuple[Package, ...]:
        """Both, each attribute and each derivation with the same outputs once."""
        unique = {(package.drv_path, tuple(package.outputs)): package for package in self.all}
        return tuple(unique.values())

    @property
    def outputs(self) -> frozenset[StorePath]:
        return frozenset(path for package in self.packages for path in package.outputs.values())

    @classmethod
    def of(
        cls, results: Mapping[AttributePath, Package | PackageProblem], requested: Collection[AttributePath]
    ) -> Self:
        """From an evaluation's results, of which those not in `requested` are base packages.

        Raises PackagesUnavailable; a base package that the package set does not have is left out.
        """
        problems = tuple(
            result
            for name, result in results.items()
            if isinstance(result, PackageProblem)
            and (name in requested or result.kind is not ProblemKind.MISSING)
        )
        if problems:
            raise PackagesUnavailable(problems)
        packages = {name: result for name, result in results.items() if isinstance(result, Package)}
        return cls(
            tuple(package for name, package in packages.items() if name in requested),
            tuple(package for name, package in packages.items() if name not in requested),
        )

    def replaced(self, results: Mapping[AttributePath, Package | PackageProblem]) -> Self:
        """With what another evaluation of some of its packages has found. Raises PackagesUnavailable."""
        known = {package.attribute: package for package in self.all}
        return self.of({**known, **results}, [package.attribute for package in self.requested])

    @classmethod
    def from_json(cls, value: Any) -> Self:
        return cls(
            tuple(map(Package.from_json, value["requested"])), tuple(map(Package.from_json, value["base"]))
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "requested": [package.to_json() for package in self.requested],
            "base": [package.to_json() for package in self.base],
        }
