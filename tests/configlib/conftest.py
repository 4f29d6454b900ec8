"""Preset files."""

from pathlib import Path

import pytest


@pytest.fixture
def preset(tmp_path):
    """Writes a preset and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "preset.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
