"""Measures all subjects and prints the table. The exit code is 1 if a target is missed."""

import asyncio
import sys

from benchmarks import latency, no_op, turns, yardstick
from benchmarks.report import Table
from benchmarks.stage import stage


async def main() -> int:
    """Measure everything on one server. Returns the exit code."""
    table = Table()
    async with stage() as ground:
        for measure in (yardstick.measure, no_op.measure, latency.measure, turns.measure):
            await measure(ground, table)
    return table.finish()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
