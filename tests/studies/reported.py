"""What a table's report has, undrawn."""

from hcmegatron.report.charts import Table as Shown
from hcmegatron.report.charts import Words
from hcmegatron.studies.figures.plot import NotDrawn, Plot
from hcmegatron.studies.read_results import read_results
from hcmegatron.studies.report import study_sections
from hcmegatron.studies.table import Table


class Report:
    """The sections of a table's report, undrawn."""

    def __init__(self, path, baseline="residual", directory=None):
        self.results = read_results(Table(str(path)), baseline)
        self.sections = {s.name: s.parts for s in study_sections(self.results, directory, 0.9, 20)}
        self.parts = [part for parts in self.sections.values() for part in parts]

    def plot(self, name):
        return next(part for part in self.parts if isinstance(part, Plot) and part.name == name)

    def series(self, plot, name, panel=0):
        return next(series for series in self.plot(plot).panels[panel].series if series.name == name)

    def table(self, section):
        return next(part for part in self.sections[section] if isinstance(part, Shown))

    def why(self, title):
        return next(
            part.why for part in self.parts if isinstance(part, NotDrawn) and part.title.startswith(title)
        )

    def words(self, section):
        return " ".join(
            line for part in self.sections[section] if isinstance(part, Words) for line in part.lines
        )
