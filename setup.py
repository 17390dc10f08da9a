"""Packages of the wheel: the command line, its configs and the sample scans go into ``anomaly/_app``.

A checkout keeps ``pipelines/``, ``configs/`` and ``sample_data/`` beside ``anomaly/``. In a wheel, these generic
names would be top-level packages of every environment, so the wheel moves them one folder down.
``anomaly/__main__.py`` finds them in both places. See docs/decisions/0005-wheel-layout.md.
"""

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

APPLICATION = "anomaly._app"
CHECKOUT_ONLY = ("pipelines.docs_pages", "pipelines.docs_pages.*", "pipelines.shipped_models")


class BuildPackages(build_py):
    """Copy packages; of the repository root, which is the folder of ``anomaly._app``, only data."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Leave out ``setup.py``, the one module in the repository root."""
        return [] if package == APPLICATION else super().find_package_modules(package, package_dir)


library = find_namespace_packages(include=["anomaly", "anomaly.*"], exclude=["anomaly._app*"])
pipelines = find_namespace_packages(include=["pipelines", "pipelines.*"], exclude=CHECKOUT_ONLY)

setup(
    packages=[*library, APPLICATION, *(f"{APPLICATION}.{name}" for name in pipelines)],
    package_dir={APPLICATION: "."},
    package_data={
        "anomaly": ["pretrained/**/*"],
        "anomaly.reports": ["templates/*"],
        APPLICATION: ["configs/**/*.yaml", "sample_data/**/*"],
    },
    exclude_package_data={APPLICATION: ["sample_data/*.py", "sample_data/recipe/*"]},
    cmdclass={"build_py": BuildPackages},
)
