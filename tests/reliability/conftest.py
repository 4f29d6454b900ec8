import pytest

from tests.reliability.good import write_good


@pytest.fixture(scope="package")
def good(tmp_path_factory):
    return write_good(tmp_path_factory.mktemp("good"))
