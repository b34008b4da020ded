"""What pyproject.toml has no words for: the recipes stand beside the package, and in the wheel inside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["rmtrl*"]), "rmtrl._recipes"],
    package_dir={"rmtrl._recipes": "recipes"},
)
