"""The process that runs workflows: one duty to each module."""
