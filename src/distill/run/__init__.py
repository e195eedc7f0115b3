"""The composition root: the only place that reads the configuration."""
