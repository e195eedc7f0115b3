"""A real Trainer, stopped and resumed, draws the batches that an uninterrupted one draws."""

import multiprocessing
import warnings

import pytest
import pytorch_lightning as pl
import torch

from distill.types import Batch


class Recorder(pl.LightningModule):
    """Notes what it is given, and can save a checkpoint after a batch."""

    def __init__(self, path=None, save_at=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []
        self.path, self.save_at = path, save_at

    def training_step(self, batch: Batch, batch_idx):
        assert batch.images.dtype == torch.float32
        self.seen.append((self.current_epoch, batch_idx, batch.index.tolist(), batch.images.sum().item()))
        return self.layer.weight.sum() * batch.images.mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if (self.current_epoch, batch_idx) == self.save_at:
            self.trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self):
        if (self.current_epoch, "end") == self.save_at:
            self.trainer.save_checkpoint(self.path)

    def validation_step(self, batch: Batch, batch_idx):
        assert len(batch.index)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, data, ckpt_path=None, **limits):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **limits,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module.seen


LIMITS = [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 10}, {"max_epochs": 3, "limit_train_batches": 3}]


@pytest.mark.parametrize("limits", LIMITS, ids=["epochs", "steps", "limited"])
@pytest.mark.parametrize("save_at", [(0, 0), (1, 1), (1, 2), (1, 3), (1, "end"), (0, "end")], ids=str)
def test_resume_equals_uninterrupted(tiny, tmp_path, save_at, limits):
    if save_at[1] == 3 and "limit_train_batches" in limits:
        save_at = (1, 2)
    path = tmp_path / "step.ckpt"
    whole = fit(Recorder(path, save_at), tiny(), **limits)
    assert [batch for _, batch, *_ in whole[:5]] == (
        [0, 1, 2, 0, 1] if "limit_train_batches" in limits else [0, 1, 2, 3, 0]
    )
    done = sum((epoch, batch) <= (save_at[0], 99 if save_at[1] == "end" else save_at[1]) for epoch, batch, *_ in whole)
    rest = fit(Recorder(), tiny(), ckpt_path=path, **limits)
    assert 0 < done < len(whole)
    assert rest == whole[done:]


def test_epochs_of_a_trainer_differ_and_follow_its_count(tiny):
    seen = fit(Recorder(), tiny(batch_size=23), max_epochs=2)
    assert [epoch for epoch, *_ in seen] == [0, 1]
    assert seen[0][2] != seen[1][2]
    data = tiny(batch_size=23)
    data.epoch = lambda: 1
    assert next(iter(data.train_dataloader())).index.tolist() == seen[1][2]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_worker_pipeline_resumes_too(tree, folder, tmp_path, workers):
    path = tmp_path / "step.ckpt"
    whole = fit(Recorder(path, (1, 0)), folder(tree, workers=workers), max_epochs=2)
    rest = fit(Recorder(), folder(tree, workers=workers), ckpt_path=path, max_epochs=2)
    assert not multiprocessing.active_children()
    assert len(whole) == 6
    assert rest == whole[4:]


def test_the_official_data_sets_resume_too(official, tmp_path):
    path = tmp_path / "step.ckpt"
    whole = fit(Recorder(path, (1, 0)), official(), max_epochs=2)
    rest = fit(Recorder(), official(), ckpt_path=path, max_epochs=2)
    assert len(whole) == 6  # three batches of an epoch
    assert rest == whole[4:]
