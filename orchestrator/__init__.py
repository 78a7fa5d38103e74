"""The orchestrator: runs the search, hands units to workers, keeps the records."""
