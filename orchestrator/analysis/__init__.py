"""What an analyst asks of a run and of a memory: queries over its tables, traces of texts, forgetting by kind."""
