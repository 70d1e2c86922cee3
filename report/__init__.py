"""The one renderer of reports: self-contained HTML pages that need no network and no server."""
