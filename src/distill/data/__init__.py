"""Data sets: one LightningDataModule each, on a device-resident or a worker pipeline."""
