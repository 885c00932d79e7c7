"""DNN and DeepFM of FuxiCTR 2.3.10 for one epoch, with its own blocks, loader and loop.

Its wheel has no DNN and no DeepFM, those are in a repository beside it: here they are put together from its embedding,
perceptron and factorization machine, as its model zoo does. The loader runs without worker processes, which is faster
here than with them; no regularization, which is faster than with it.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything

DIM, HIDDEN = 16, [400, 400, 400]


class Network(BaseModel):
    def __init__(self, feature_map: FeatureMap, has_machine: bool, folder: str) -> None:
        super().__init__(feature_map, model_root=folder, metrics=["logloss"], verbose=0)
        self.embedding_layer = FeatureEmbedding(feature_map, DIM)
        self.fm = FactorizationMachine(feature_map) if has_machine else None
        self.mlp = MLP_Block(input_dim=DIM * feature_map.num_fields, hidden_units=HIDDEN, output_dim=1)
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict) -> dict:
        x = self.get_inputs(inputs)
        vectors = self.embedding_layer(x)
        logit = self.mlp(vectors.flatten(start_dim=1))
        if self.fm is not None:
            logit = logit + self.fm(x, vectors)
        return {"y_pred": self.output_activation(logit)}


def main() -> None:
    network, log, seed, batch_rows, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    seed_everything(int(seed))
    data = np.load(log)
    train_rows, names = int(data["train_rows"]), [f"f{field:02}" for field in range(len(data["sizes"]))]
    with tempfile.TemporaryDirectory() as folder:
        feature_map = FeatureMap("speed", folder)
        feature_map.labels = ["label"]
        for name, size in zip(names, data["sizes"], strict=True):
            feature_map.features[name] = {"source": "", "type": "categorical", "vocab_size": int(size)}
        feature_map.num_fields = feature_map.get_num_fields()
        feature_map.set_column_index()
        for part, rows in (("train", slice(0, train_rows)), ("valid", slice(train_rows, None))):
            columns = {name: data["ids"][rows, field] for field, name in enumerate(names)}
            np.savez(Path(folder) / f"{part}.npz", label=data["label"][rows], **columns)
        train, valid = (
            NpzDataLoader(feature_map, f"{folder}/{part}.npz", int(batch_rows), shuffle=part == "train", num_workers=0)
            for part in ("train", "valid")
        )
        # The order of rows that Retort draws: where an epoch ends shows in the loss more than anything else does here.
        train.batch_sampler.sampler = np.random.default_rng([int(seed), 1]).permutation(train_rows)
        model = Network(feature_map, network == "deepfm", folder)
        model._max_gradient_norm, model._total_steps, model._stop_training = 10.0, 0, False
        model._eval_steps = sys.maxsize
        started, cpu = time.perf_counter(), time.process_time()
        model.train_epoch(train)
        found = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
        pctr = np.clip(model.predict(valid), 1e-12, 1 - 1e-12)
    label = data["label"][train_rows:]
    found["logloss"] = float(-np.mean(np.where(label > 0, np.log(pctr), np.log1p(-pctr))))
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found | {"rows": train_rows}))


if __name__ == "__main__":
    main()
