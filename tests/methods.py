"""Methods that only tests need."""

from typing import Any

from torch import Tensor, nn

from distill.distillers import Distiller
from distill.models.network import Network
from distill.types import Batch, Output, Spec, Step


class Borrowed(Network):
    """A student's features under a projector and its teacher's classifier: what SimKD-like methods deploy."""

    def __init__(self, student: Network, projector: nn.Linear, head: nn.Linear) -> None:
        super().__init__()
        self.student, self.projector, self.head = student, projector, head

    @property
    def classifier(self) -> nn.Linear:
        return self.head

    def forward(self, images: Tensor) -> Output:
        answer: Output = self.student(images)
        assert answer.pooled is not None
        return Output(logits=self.classify(self.projector(answer.pooled)))


class Borrows(Distiller):
    """Trains a student to be read by its teacher's classifier."""

    needs = "features"

    def __init__(self, spec: Spec, *, weight: float) -> None:
        super().__init__()
        assert spec.teacher
        assert spec.teacher.pooled
        assert spec.student.pooled
        self.weight = weight
        self.projector = nn.Linear(spec.student.pooled, spec.teacher.pooled)

    def prepare(self, student: Network, teacher: Network | None) -> None:
        student.classifier.requires_grad_(False)

    def observe(self, student: Network, teacher: Network | None, batch: Batch) -> tuple[Output, Output]:
        _, answer = super().observe(student, teacher, batch)
        composite: Any = self.deploy(student, teacher)
        return composite(batch.images), answer

    def forward(self, step: Step) -> dict[str, Tensor]:
        return {"match": self.weight * (step.student.logits - step.teacher.logits).square().mean()}

    def deploy(self, student: Network, teacher: Network | None) -> nn.Module:
        assert teacher
        return Borrowed(student, self.projector, teacher.classifier)
