"""Where it comes from: who saw which rows, the log, the bundles, the recipe."""

from __future__ import annotations

import html
import json

from training.report.pieces import details, section, table
from training.report.values import Values, pointer


def who_saw_what(v: Values) -> str:
    """As training/pipeline/steps.py does it with this recipe; the numbers of rows are this run's."""
    learn, stop, nothing = '<span class="learns">learns</span>', "stops it", ""
    scheme = v.get("/recipe/scheme/kind") or "pretrain"
    by_auc = v.get("/recipe/student/fit/stop_by") == "valid_auc"
    decides = "gate or average?" if v.get("/recipe/gate/fallback") is not False else nothing
    together = scheme != "pretrain"
    gate_learns = scheme == "cotrain" or v.get("/recipe/gate/learns_on") == "train"
    first = "teachers, together with the student" if together else "teachers; control, training rows only"
    by = " (AUC of the ensemble)" if together else " (AUC)"
    matrix = [(first, [learn, stop + by, nothing, nothing, nothing])]
    if together:
        matrix.append(("control, training rows only", [learn, stop + " (AUC)", nothing, nothing, nothing]))
    if gate_learns:
        matrix.append(("gate", [learn, nothing, nothing, decides, nothing]))
        matrix.append(("scale and bias of the ensemble", [nothing, nothing, learn, nothing, nothing]))
    else:
        matrix.append(("gate, scale, bias", [nothing, nothing, learn, decides, nothing]))
    distance = " (AUC)" if by_auc else " (distance to the ensemble)"
    matrix.append(("student", [learn, stop + distance, nothing, nothing, nothing]))
    matrix.append(("calibration (Platt: a scale and a bias)", [nothing, nothing, nothing, learn, nothing]))
    if v.get("/recipe/merge_validation") is not False:
        everything = [learn, learn, learn, learn, nothing]
        matrix.append(("teachers, student and control again, as they are served", everything))
    matrix.append(("this report", ["shown", nothing, nothing, nothing, "measured, once"]))
    parts = v.get("/parts")
    heads = ["", *(part["part"].replace("_", " ").replace("valid a", "valid A") for part in parts)]
    heads = [head.replace("valid b", "valid B").replace("valid c", "valid C") for head in heads]
    facts = [
        ["rows", *(v.show(pointer("parts", i, "rows"), "count") for i in range(len(parts)))],
        ["clicked", *(v.show(pointer("parts", i, "click_rate"), "percent") for i in range(len(parts)))],
    ]
    if any(part["first"] for part in parts):
        facts.append(["from", *(v.show(pointer("parts", i, "first"), "moment") for i in range(len(parts)))])
        facts.append(["to", *(v.show(pointer("parts", i, "last"), "moment") for i in range(len(parts)))])
    note = "<p>Validation rows are parted by the hash of their unit (the user), so no unit is in two of A, B and C.</p>"
    rights = table(heads, [*facts, *([html.escape(name), *cells] for name, cells in matrix)], label="Rows by part")
    return section("Who saw which rows", note + rights, "rows")


def data(v: Values) -> str:
    """The files, and what was missing, unknown or unreadable in them."""
    facts = [
        ("files", ", ".join(v.show(pointer("data", "files", i), "text") for i in range(len(v.get("/data/files"))))),
        ("fingerprint (sha256)", f"<code>{v.show('/data/fingerprint', 'text')}</code>"),
        ("rows left out by the split", v.show("/data/unused_rows", "count")),
        ("rows that could not be read", v.show("/data/bad_rows", "count")),
    ]
    if "unlabelled_rows" in v.get("/data"):
        taught, stopped = (v.show(f"/data/unlabelled_rows/{key}", "count") for key in ("taught", "stopped"))
        facts.append(("rows without clicks, that taught the student alone", taught))
        facts.append(("and that stopped it", stopped))
    for field in v.get("/data/bad_cells"):
        count = v.show(pointer("data", "bad_cells", field), "count")
        facts.append((f"cells of {field} that were no value, taken as missing", count))
    listed = table(["", ""], [[html.escape(name), value] for name, value in facts], left=2, label="The log")
    rows = [
        [
            f"<code>{html.escape(field['field'])}</code>",
            *(
                v.show(pointer("fields", index, key), form)
                for key, form in (
                    ("ids", "count"),
                    ("missing_in_train", "percent"),
                    ("missing_in_test", "percent"),
                    ("unknown_in_test", "percent"),
                )
            ),
        ]
        for index, field in enumerate(v.get("/fields"))
    ]
    heads = ["field", "ids", "missing, training", "missing, test", "unknown, test"]
    return section("The log", listed + details("Fields", table(heads, rows, label="Fields of the log")), "log")


def provenance(v: Values) -> str:
    """What was published, how exactly, from which recipe."""
    facts = [
        (f"bundle {model['name']}", f"version {v.show(pointer('published', index, 'version'), 'count')}")
        for index, model in enumerate(v.get("/published"))
    ]
    facts += [
        (
            f"{name}: largest difference of the exported graph from torch, in logit",
            v.show(pointer("parity_error", name), "tiny"),
        )
        for name in v.get("/parity_error")
    ]
    for index in range(len(v.get("/overrides") or [])):
        facts.append(("set on the command line", f"<code>{v.show(f'/overrides/{index}', 'text')}</code>"))
    facts.append(("this run took (cached steps left out)", v.show("/seconds", "seconds")))
    facts.append(
        ("KL of the student from its ensemble, test rows, first seed", v.show("/kl_ensemble_student/0", "figure"))
    )
    listed = table(["", ""], [[html.escape(name), value] for name, value in facts], left=2, label="Provenance")
    recipe = html.escape(json.dumps(v.get("/recipe"), indent=2, ensure_ascii=False))
    return section("Where this comes from", listed + details("The recipe, whole", f"<pre>{recipe}</pre>"), "from")
