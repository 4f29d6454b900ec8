"""What pyproject.toml cannot say: the presets in `configs/` are installed as package data.

Their one home stays the folder at the top; in the wheel it is `cogcalib_jax/presets`.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PRESETS = "cogcalib_jax.presets"


def preset_packages() -> dict[str, str]:
    """Return package -> folder for `configs/` and the folders below it."""
    folders = sorted({file.parent for file in (HERE / "configs").rglob("*.yaml")})
    folders = [*folders, HERE / "configs" / "models"]
    return {
        ".".join((PRESETS, *folder.relative_to(HERE / "configs").parts)): str(
            folder.relative_to(HERE)
        )
        for folder in folders
    }


setup(
    packages=[*find_packages(include=["cogcalib_jax*"]), *preset_packages()],
    package_dir=preset_packages(),
    package_data={name: ["*.yaml", "*.json"] for name in preset_packages()}
    | {"cogcalib_jax": ["py.typed", "*.pyi"], "cogcalib_jax.report": ["templates/*"]},
)
