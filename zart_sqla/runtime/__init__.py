"""What runs a workflow: the journal, the steps and the turn. No SQL is here; it is tested without a database."""
