"""The table: one line per figure, and a verdict if there is a target."""

from dataclasses import dataclass, field

__all__ = ["Table"]


@dataclass
class Table:
    """Prints figures as they are measured. `finish` returns whether all targets were met."""

    missed: list[str] = field(default_factory=list)

    def title(self, text: str) -> None:
        """Start a subject."""
        print(f"\n{text}", flush=True)

    def figure(self, name: str, value: str, note: str = "") -> None:
        """A figure without a target."""
        print(f"  {name:<34} {value:>14}   {note}".rstrip(), flush=True)

    def at_least(self, name: str, value: str, ratio: float, target: float, of: str) -> None:
        """A figure whose `ratio` should be at least `target`."""
        self._judge(name, value, ratio >= target, f"{ratio:.2f} of {of}, target >= {target:.2f}")

    def at_most(self, name: str, value: str, ratio: float, target: float, of: str) -> None:
        """A figure whose `ratio` should be at most `target`."""
        self._judge(name, value, ratio <= target, f"{ratio:.2f} {of}, target <= {target:.2f}")

    def _judge(self, name: str, value: str, met: bool, note: str) -> None:
        self.figure(name, value, f"{'ok    ' if met else 'missed'}  {note}")
        if not met:
            self.missed.append(name)

    def finish(self) -> int:
        """Print the last line. Returns the exit code."""
        print(f"\n{'missed: ' + '; '.join(self.missed) if self.missed else 'all targets are met'}")
        return 1 if self.missed else 0
