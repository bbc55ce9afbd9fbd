"""What all tests share."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Features and lists of checked images go where the test's other files go."""
    monkeypatch.setenv("EQUIMID_DATA", str(tmp_path_factory.getbasetemp() / "equimid"))
