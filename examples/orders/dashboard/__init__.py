"""The orders dashboard: what analytics counted, how the groups fare, and why something failed.

    dashboard = create_dashboard(source)
    async with serve(dashboard) as address: ...

The page draws a `Snapshot`; where it comes from is the `DashboardSource`'s business.
"""

from .app import create_dashboard
from .serving import serve
from .snapshot import (
    Account,
    Bucket,
    DashboardSource,
    Department,
    Kind,
    Letter,
    LogCount,
    Rebuild,
    Snapshot,
    SourceUnavailable,
    Totals,
)

__all__ = [
    "Account",
    "Bucket",
    "DashboardSource",
    "Department",
    "Kind",
    "Letter",
    "LogCount",
    "Rebuild",
    "Snapshot",
    "SourceUnavailable",
    "Totals",
    "create_dashboard",
    "serve",
]
