"""What each command of ``namm`` does: one file per command, each returning an ``Answer``."""
