"""Names of the files in a run's folder, for those who write and those who read them. Imports nothing."""

CONFIG = "config.yaml"
METRICS = "metrics.csv"
RESULT = "result.json"
LAST, BEST = "last.ckpt", "best.ckpt"
STUDENT = "student.safetensors"
TEACHER = "teacher.safetensors"
FEATURES = "features.safetensors"
