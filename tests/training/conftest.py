import pytest

from tests.inference.quick import quick_compilation as quickly


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def quick_compilation(compiled):
    with quickly(compiled):
        yield
