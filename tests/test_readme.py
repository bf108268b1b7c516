"The README's library calls run as they are written, on plain arrays."
import re
from pathlib import Path

import numpy as np

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def made_arrays(n=90, k=3, seed=0):
    "The names that the README's block uses, for two splits of scores and three of images."
    rng = np.random.default_rng(seed)
    names = {"classes": ["a", "b", "c"], "scanner": rng.choice(["A", "B"], n), "age": rng.integers(20, 90, n)}
    for prefix in ("train_", "val_", ""):
        labels = np.arange(n) % k
        logits = rng.normal(size=(n, k)) + 2 * np.eye(k)[labels]
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        names |= {f"{prefix}labels": labels, f"{prefix}logits": logits, f"{prefix}probs": probs, f"{prefix}positive": labels == 1,
                  f"{prefix}score": probs[:, 1], f"{prefix}images": rng.integers(0, 256, (n, 1, 28, 28), dtype=np.uint8)}
    return names | {"other_probs": np.roll(names["probs"], 1, axis=1), "other_score": np.roll(names["score"], 1)}


def test_the_calls_on_plain_arrays_run_and_return_what_is_said():
    block = next(b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "bootstrap_intervals(" in b)
    found = made_arrays()
    exec(block, found)                                # the README's own text
    n, k = found["probs"].shape
    assert found["sets"].shape == (n, k) and found["sets"].dtype == bool
    assert 0 < found["threshold"] < 1
    rows = found["slice_report"](found["labels"], found["probs"], "multi-class", found["own"])["slices"]
    assert rows[0]["column"] == "scanner" and rows[0]["n"] == int((found["scanner"] == "B").sum())
    assert set(found["bootstrap_intervals"](found["labels"], found["probs"], "multi-class")) >= {"auc", "accuracy"}


def test_the_keys_that_the_readme_names_are_in_metrics_json():
    from xaimed.eval import __file__ as source
    code = Path(source).read_text(encoding="utf-8")
    for key in ("leaks", "held_out", "calibration", "operating", "conformal", "selective", "slices", "robustness", "strangers", "ensemble", "dropout", "neighbours"):
        assert f"`{key}`" in TEXT, key
        assert f'"{key}"' in code, key
