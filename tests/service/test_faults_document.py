"""docs/faults.md against the tests: what it says is shown is shown."""

import re

from tests.service.running import ROOT

TEXT = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    """The rows of the tables whose last column names tests."""
    found, is_held = [], False
    for line in TEXT.splitlines():
        if line.startswith("| what goes wrong"):
            is_held = line.endswith("| test |")
            assert is_held, line
        elif not line.startswith("|"):
            is_held = False
        elif is_held and not line.startswith("|-"):
            found.append([cell.strip() for cell in line.strip("|").split(" |")])
    return found


def test_every_fault_has_a_test_that_exists():
    """Each row names at least one, by its file and its name; those that are marked as long are long."""
    missing = []
    for fault, happens, shown in rows():
        assert fault
        assert happens
        named = re.findall(r"`([\w/]+\.py)::(\w+)`( \(soak\))?", shown)
        assert named, f"no test is named for: {fault}"
        assert re.sub(r"`[\w/]+\.py::\w+`|\(soak\)|\s", "", shown) == "", shown
        for file, name, soak in named:
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            found = re.search(rf"((?:^@.*\n|^[ )].*\n)*)^(?:async )?def test_{name}\(", text, flags=re.MULTILINE)
            is_soak = "pytestmark = pytest.mark.soak" in text or (found is not None and "mark.soak" in found[1])
            if found is None or is_soak != bool(soak):
                missing.append(f"{file}::{name}{soak}")

    assert missing == []
    assert len(rows()) > 30
