"""DeepFM of DeepCTR-Torch 0.3.0 for one epoch, by its own loop; it has no plain DNN. No regularization."""

import json
import resource
import sys
import time

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import DeepFM

DIM, HIDDEN = 16, (400, 400, 400)


def main() -> None:
    network, log, seed, batch_rows, threads = sys.argv[1:]
    assert network == "deepfm"
    torch.set_num_threads(int(threads))
    data = np.load(log)
    train_rows = int(data["train_rows"])
    columns = [
        SparseFeat(f"f{field:02}", vocabulary_size=int(size), embedding_dim=DIM)
        for field, size in enumerate(data["sizes"])
    ]
    model = DeepFM(
        columns,
        columns,
        dnn_hidden_units=HIDDEN,
        l2_reg_linear=0,
        l2_reg_embedding=0,
        l2_reg_dnn=0,
        seed=int(seed),
        device="cpu",
    )
    model.compile("adam", "binary_crossentropy", metrics=[])
    inputs = {column.name: data["ids"][:, field] for field, column in enumerate(columns)}
    train = {name: values[:train_rows] for name, values in inputs.items()}
    started, cpu = time.perf_counter(), time.process_time()
    model.fit(train, data["label"][:train_rows], batch_size=int(batch_rows), epochs=1, verbose=0)
    found = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    valid = {name: values[train_rows:] for name, values in inputs.items()}
    pctr = np.clip(model.predict(valid, int(batch_rows))[:, 0], 1e-12, 1 - 1e-12)
    label = data["label"][train_rows:]
    found["logloss"] = float(-np.mean(np.where(label > 0, np.log(pctr), np.log1p(-pctr))))
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found | {"rows": train_rows}))


if __name__ == "__main__":
    main()
