"""What docs/logs.md shows is what the code takes."""

from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from training.data.sources import SourceSettings
from training.data.split import Split

ROOT = Path(__file__).parents[3]
BLOCKS = [block.split("```")[0] for block in (ROOT / "docs" / "logs.md").read_text().split("```yaml\n")[1:]]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_example_is_good(block: str):
    [(key, value)] = yaml.safe_load(block).items()

    TypeAdapter({"source": SourceSettings, "split": Split}[key]).validate_python(value)


def test_every_way_to_name_a_log_and_to_split_it_is_shown():
    shown = "\n".join(BLOCKS)

    assert all(word in shown for word in ("kind: files", "kuairand_pure", "ml_latest_small", "criteo", "avazu", "obd"))
    assert all(
        word in shown for word in ("last_days", "fractions", "boundaries", "by: column", "by: files", "by: folds")
    )
