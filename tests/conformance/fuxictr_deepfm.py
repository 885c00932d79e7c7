"""A DeepFM trained and exported by FuxiCTR 2.3.10, as its users do it; runs where FuxiCTR is installed, not here.

    python fuxictr_deepfm.py FOLDER

FOLDER then holds a generated log (train.csv), what FuxiCTR's processing left of it (data/ads/), the graph
(deepfm.onnx), rows that were not trained on with the model's own predictions (rows.csv), and others (checked.csv), each
with the ids that FuxiCTR gives (rows.ids.json, checked.ids.json).
Cells are empty, values rare and never seen, lists empty and long, in all of them.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything

DIM = 8
COLUMNS = ["click", "user_id", "device", "hour", "visited", "ad_id", "campaign", "price_band", "tags"]
FEATURES = [
    {"name": ["user_id", "device"], "active": True, "dtype": "str", "type": "categorical", "source": "user"},
    {"name": "hour", "active": True, "dtype": "int", "type": "categorical", "source": "user"},
    {
        "name": "visited",
        "active": True,
        "dtype": "str",
        "type": "sequence",
        "splitter": "^",
        "max_len": 5,
        "padding": "pre",
        "source": "user",
    },
    {"name": "ad_id", "active": True, "dtype": "str", "type": "categorical", "source": "item"},
    {"name": "campaign", "active": True, "dtype": "int", "type": "categorical", "fill_na": -1, "source": "item"},
    {"name": "price_band", "active": True, "dtype": "float", "type": "categorical", "source": "item"},
    {
        "name": "tags",
        "active": True,
        "dtype": "str",
        "type": "sequence",
        "splitter": "^",
        "max_len": 3,
        "source": "item",
    },
]


class DeepFM(BaseModel):
    """As FuxiCTR's model zoo has it, of its own blocks."""

    def __init__(self, feature_map: FeatureMap, folder: Path) -> None:
        super().__init__(feature_map, model_root=str(folder), metrics=["logloss"], verbose=0)
        self.embedding_layer = FeatureEmbedding(feature_map, DIM)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(
            input_dim=DIM * feature_map.num_fields, hidden_units=[64, 32], output_dim=1, batch_norm=True
        )
        self.compile("adam", "binary_crossentropy", 1e-2)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = self.get_inputs(inputs)
        vectors = self.embedding_layer(x)
        return {"y_pred": self.output_activation(self.fm(x, vectors) + self.mlp(vectors.flatten(start_dim=1)))}


class Exported(torch.nn.Module):
    """The network as a function of one tensor a feature."""

    def __init__(self, model: DeepFM, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(dict(zip(self.names, tensors, strict=True)))["y_pred"]


def write_log(path: Path, rows: int, seed: int) -> None:
    """A log whose clicks depend on user, ad, hour and tags."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for _ in range(rows):
            user, ad, hour = int(rng.paretovariate(0.6)) % 400, int(rng.paretovariate(0.5)) % 300, rng.randrange(24)
            tags = rng.sample(["sport", "news", "film", "cars", "food", "travel"], rng.randrange(0, 6))
            visited = [f"site-{int(rng.paretovariate(0.8)) % 60}" for _ in range(rng.randrange(0, 9))]
            score = -1.2 + 0.8 * np.sin(user) + 0.9 * np.cos(ad * 1.7) + 0.5 * (hour > 18) + 0.6 * ("sport" in tags)
            cells: list[object] = [
                int(rng.random() < 1 / (1 + np.exp(-score))),
                f"u{user}",
                rng.choice(["phone", "desktop", "tablet", "téléphone 📱"]),
                hour,
                "^".join(visited),
                f"a{ad}",
                ad % 17,
                rng.choice([0.5, 1.0, 2.5, 10.0]),
                "^".join(tags),
            ]
            writer.writerow([cells[0], *("" if rng.random() < 0.06 else cell for cell in cells[1:])])


def read(processor: FeatureProcessor, path: Path) -> pl.LazyFrame:
    """What `processor.read_data` does, which polars 2 no longer understands."""
    return processor.preprocess(pl.scan_csv(path, schema_overrides=processor.dtype_dict))


def tensors_of(processor: FeatureProcessor, path: Path) -> dict[str, torch.Tensor]:
    """A log as FuxiCTR encodes it."""
    frame = read(processor, path).collect()
    encoded = processor.transform({name: frame[name].to_list() for name in frame.columns})
    return {name: torch.from_numpy(np.array(values)) for name, values in encoded.items()}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(7)
    for name, rows, seed in (("train", 6000, 1), ("rows", 1500, 2), ("checked", 400, 3)):
        write_log(folder / f"{name}.csv", rows, seed)

    label = {"name": "click", "dtype": "float"}
    processor = FeatureProcessor(FEATURES, label, dataset_id="ads", data_root=str(folder / "data"))
    processor.fit(read(processor, folder / "train.csv"), min_categr_count=2)
    feature_map = FeatureMap("ads", str(folder / "data" / "ads"))
    feature_map.load(processor.json_file, {"embedding_dim": DIM})

    train, model = tensors_of(processor, folder / "train.csv"), DeepFM(feature_map, folder)
    model._max_gradient_norm = 10.0
    model.train()
    for _ in range(4):
        for rows in torch.randperm(len(train["click"])).split(256):
            model.train_step({name: values[rows] for name, values in train.items()})
    model.eval()

    names = list(feature_map.features)
    example = tuple(train[name][:3].long() for name in names)
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        Exported(model, names).eval(),
        example,
        folder / "deepfm.onnx",
        input_names=names,
        output_names=["y_pred"],
        dynamic_shapes={"tensors": tuple({0: batch} for _ in names)},
        external_data=False,
        optimize=False,  # the optimizer takes MaskedAveragePooling's + 1e-12 for nothing, and an empty list becomes NaN
    )

    for name in ("rows", "checked"):
        given = tensors_of(processor, folder / f"{name}.csv")
        with torch.no_grad():
            pctr = model({feature: given[feature].long() for feature in names})["y_pred"].double().flatten().tolist()
        ids = {feature: given[feature].tolist() for feature in names}
        (folder / f"{name}.ids.json").write_text(json.dumps(ids), encoding="utf-8")
        lines = (folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()
        said = ["fuxictr_pctr", *map(repr, pctr)]
        text = "\n".join(f"{line},{value}" for line, value in zip(lines, said, strict=True))
        (folder / f"{name}.csv").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
