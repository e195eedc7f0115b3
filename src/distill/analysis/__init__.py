"""What is made of finished runs: the store of their results, the paper's numbers, tables and figures."""
