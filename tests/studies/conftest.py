"""Reports of tables."""

import pytest

from tests.studies.reported import Report
from tests.studies.tables import written


@pytest.fixture
def report(tmp_path):
    return lambda rows, **options: Report(written(tmp_path / "table.csv", rows), **options)
