"""Tasks: what is asked of a language model, and how an answer is scored."""
