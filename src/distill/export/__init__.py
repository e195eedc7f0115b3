"""The deployed student for others: files in common formats, checked against PyTorch, and a model card."""
