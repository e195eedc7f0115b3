"""Pictures of results. Each function takes results or arrays, and the path of the picture."""
