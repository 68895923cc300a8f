"""An asyncio daemon that migrates its builder's cache before it starts to work.

    python asyncio_daemon.py /var/lib/buildkit/containerd-overlayfs report.json

Shows what an embedding program needs: progress, a limit of time, errors that say whether anything was changed, and the report
written without blocking the event loop.
"""

from __future__ import annotations

import asyncio
import json
import sys

import aiofiles

import asyncmig


class Log(asyncmig.Progress):
    """Prints the stages and how it ended, and keeps the report for a caller that is cancelled."""

    report: asyncmig.Report | None = None

    def stage(self, stage: asyncmig.Stage, total: int | None) -> None:
        """``stage`` begins."""
        print(f"cache migration: {stage}" + (f", {total} to do" if total else ""), flush=True)

    def uncancellable(self) -> None:
        """From here on a cancellation waits for the end."""
        print("cache migration: changing the stores; this completes whatever happens", flush=True)

    def ended(self, report: asyncmig.Report) -> None:
        """It has ended well; if it was cancelled meanwhile, nobody gets the report but here."""
        self.report = report
        print(f"cache {report.outcome}: {report.counts.records} records", flush=True)


async def upgrade_cache(path: str, report_path: str) -> None:
    """Migrate the cache at ``path``, or leave it as it is."""
    log = Log()
    try:
        async with asyncio.timeout(600):  # in the tail it is the migration that ends first
            await asyncmig.migrate(path, progress=log)
    except TimeoutError:
        if log.report is None:
            print("not migrated in time, nothing was changed", flush=True)
            return
    except asyncmig.IncompleteMigrationError as error:
        raise SystemExit(f"{error}") from error  # don't start on such a cache: run again
    except asyncmig.DatabaseLockedError:
        print("the old daemon is still running; migrating at the next start", flush=True)
        return
    except asyncmig.AsyncmigError as error:
        print(f"not migrated, nothing was changed: {error}", flush=True)
        return
    assert log.report is not None
    async with aiofiles.open(report_path, "w") as file:
        await file.write(json.dumps(log.report.to_dict(), indent=2))


async def main() -> None:
    """Migrate, then work."""
    path, report_path = sys.argv[1:]
    await upgrade_cache(path, report_path)
    print("ready", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
