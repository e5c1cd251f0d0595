"""The files that a verb writes its report to, beside what it prints."""

from dataclasses import dataclass
from pathlib import Path

from entropyfloor.rollouts.options import flag


@dataclass(frozen=True)
class ReportFiles:
    """Flags of verbs that report."""

    json: str | None = flag(None, "write the report as JSON", metavar="FILE")
    markdown: str | None = flag(None, "write the table as Markdown", metavar="FILE")
    html: str | None = flag(None, "write one self-contained HTML page", metavar="FILE")
    plot: str | None = flag(None, "write the plot as PNG", metavar="FILE")

    def check(self) -> None:
        """Raise ValueError, before compute is spent, for a file that cannot be written."""
        for target in (self.json, self.markdown, self.html, self.plot):
            if target is None:
                continue
            if Path(target).is_dir():
                raise ValueError(f"{target} is a directory; name the file to write")
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        if self.plot is not None:
            from entropyfloor.render.figure import check_suffix  # matplotlib

            check_suffix(self.plot)
