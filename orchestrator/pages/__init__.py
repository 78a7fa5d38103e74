"""Pages of one file each: they open from a disk, ask nothing of any network, and run no text of a prompt."""
