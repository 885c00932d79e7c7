"""The application as its users meet it: every route is described, with examples that are true."""

import html
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient

from service.app import MODEL_ROUTE, VERSION_ROUTE, Service, find_inference, find_target
from service.errors import PROBLEMS, Code
from service.http import page
from service.http.descriptions import PREDICT_REQUEST_SCHEMA
from service.oip.inference import INFER_ROUTE, INFER_VERSION_ROUTE
from service.scoring.explain import EXPLAIN_MODEL_ROUTE, EXPLAIN_ROUTE, EXPLAIN_VERSION_ROUTE
from service.scoring.predict import Target
from tests.service.running import make_app, metric, request_of, wait_until_ready

ROUTES = {
    ("post", "/predict"),
    ("post", MODEL_ROUTE),
    ("post", VERSION_ROUTE),
    ("get", "/health/live"),
    ("get", "/health/ready"),
    ("get", "/metrics"),
    ("post", "/feedback"),
    ("get", "/catalogue"),
    ("put", "/catalogue"),
    ("post", EXPLAIN_ROUTE),
    ("post", EXPLAIN_MODEL_ROUTE),
    ("post", EXPLAIN_VERSION_ROUTE),
    ("get", "/experiments"),
    ("get", "/experiments/{name}"),
    ("put", "/experiments/{name}"),
    ("delete", "/experiments/{name}/halts/{arm}"),
    ("get", "/experiments/{name}/preview"),
    ("get", "/experiments/{name}/results"),
    ("get", "/experiments/{name}/results.html"),
    ("get", "/v2"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/v2/models/stats"),
    ("get", "/v2/models/{name}"),
    ("get", "/v2/models/{name}/ready"),
    ("get", "/v2/models/{name}/stats"),
    ("post", INFER_ROUTE),
    ("get", "/v2/models/{name}/versions/{version}"),
    ("get", "/v2/models/{name}/versions/{version}/ready"),
    ("get", "/v2/models/{name}/versions/{version}/stats"),
    ("post", INFER_VERSION_ROUTE),
    ("post", "/v2/repository/index"),
    ("post", "/v2/repository/models/{name}/load"),
    ("post", "/v2/repository/models/{name}/unload"),
}
PAGES = {"/openapi.json", "/docs", "/console", "/console/assets/{name}", "/console/example"}


@pytest.fixture(scope="module")
def openapi(client: TestClient) -> dict[str, Any]:
    content: dict[str, Any] = client.get("/openapi.json").json()
    return content


def operations(openapi: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): op for path, methods in openapi["paths"].items() for method, op in methods.items()}


def test_every_route_is_in_the_openapi(app: Service, openapi: dict[str, Any]):
    """Nothing is served that is not described, but the description itself, and the console's pages."""
    assert operations(openapi).keys() == ROUTES
    served = {route.path for route in app.routes}  # type: ignore[attr-defined]
    assert served - {path for _, path in ROUTES} == PAGES


def test_every_route_shows_what_it_takes_and_what_it_answers(openapi: dict[str, Any]):
    """A summary, an example of each answer, and an example of each request body; refusals as problem+json."""
    for (method, path), operation in operations(openapi).items():
        assert operation["summary"], path
        for status, response in operation["responses"].items():
            (media,) = response["content"].values()
            assert media["schema"], (path, status)
            assert media["examples"], (path, status)
            if status != "200":
                assert list(response["content"]) == ["application/problem+json"]
        if method == "post":
            body = operation["requestBody"]["content"]["application/json"]
            assert body["schema"]["properties"], path
            assert body["examples"], path


def test_every_refusal_is_described(openapi: dict[str, Any]):
    """Each refusal of the table, but those that belong to no route, is shown by one."""
    elsewhere = {Code.NOT_FOUND, Code.METHOD_NOT_ALLOWED}
    shown = set()
    for operation in operations(openapi).values():
        for status, response in operation["responses"].items():
            if status != "200":
                for code, example in response["content"]["application/problem+json"]["examples"].items():
                    assert example["value"]["code"] == code
                    assert example["value"]["status"] == int(status) == PROBLEMS[Code(code)].status
                    shown.add(code)

    assert shown == {str(code) for code in Code} - elsewhere


def test_the_example_requests_are_answered(client: TestClient, openapi: dict[str, Any]):
    """With members in the order of the example answers, though of course with other numbers."""
    for path in ("/predict", MODEL_ROUTE, VERSION_ROUTE):
        operation = openapi["paths"][path]["post"]
        shown = [e["value"] for e in operation["responses"]["200"]["content"]["application/json"]["examples"].values()]
        for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
            reply = client.post(path.format(name="control", version=1), content=orjson.dumps(example["value"]))

            assert reply.status_code == 200
            assert list(reply.json()) == list(shown[0])
            assert len(reply.json()["pctr"]) == 2


def test_the_schema_is_true_of_the_answers(client: TestClient, openapi: dict[str, Any]):
    """Every member that an answer has is in the schema, with a type that it has."""
    schema = openapi["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    types = {"string": str, "integer": int, "array": list, "null": type(None)}

    for path in ("/predict", "/models/student/predict"):
        answer = client.post(path, json=request_of(1)).json()
        assert set(schema["required"]) == set(answer)
        for name, value in answer.items():
            kinds = schema["properties"][name]["type"]
            assert type(value) in {types[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)}


def test_the_page_for_people_shows_all_of_it(client: TestClient, openapi: dict[str, Any]):
    """Every route, every member of a request, every example; text from the description never becomes markup."""
    reply = client.get("/docs")
    text = html.unescape(reply.text)

    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    for (method, path), operation in operations(openapi).items():
        assert f"<h2>{method.upper()} {path}</h2>" in text
        assert operation["summary"] in text
    for name, member in PREDICT_REQUEST_SCHEMA["properties"].items():
        assert f"<code>{name}</code>" in text
        assert member["description"] in text
    for code in Code:
        if code not in (Code.NOT_FOUND, Code.METHOD_NOT_ALLOWED):
            assert f'"code": "{code}"' in text
    assert "<script" not in page.render({**openapi, "info": {"title": "<script>", "summary": "<script>"}})


def test_the_page_for_people_needs_no_network(client: TestClient):
    """No script, style sheet, font or picture from anywhere, and the browser is told to fetch none."""
    reply = client.get("/docs")

    assert not re.search(r"<(script|link|img|iframe|object)|url\(|@import|https?://|//cdn", reply.text)
    assert re.findall(r'(?:src|href)="([^"]*)"', reply.text) == ["openapi.json"]
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    assert client.get("/redoc").status_code == 404


def test_health_is_said_in_two_ways(client: TestClient):
    """Alive: the process answers. Ready: golden rows have passed and it is not shutting down."""
    assert (client.get("/health/live").status_code, client.get("/health/live").json()) == (200, {"status": "alive"})
    assert (client.get("/health/ready").status_code, client.get("/health/ready").json()) == (200, {"status": "ready"})


def test_a_draining_application_answers_and_says_goodbye(repository: Path):
    """Readiness falls at once, while what still arrives is answered, with the request to connect elsewhere next."""
    app = make_app(repository)
    with TestClient(app) as client:
        while client.get("/health/ready").status_code != 200:
            pass
        app.drain()

        ready = client.get("/health/ready")
        predict = client.post("/predict", json=request_of(1))

    assert (ready.status_code, ready.json()["reasons"]) == (503, ["shutting down"])
    assert predict.status_code == 200
    assert predict.headers["connection"] == ready.headers["connection"] == "close"


def test_experiments_are_shown_as_they_run(client: TestClient):
    """Versions resolved, buckets computed: all that replaying an assignment in SQL needs."""
    one = client.get("/experiments/student-vs-ensemble").json()

    assert client.get("/experiments").json() == {"experiments": [one]}
    assert one["salt"] == "student-vs-ensemble-1"
    assert [(arm["name"], arm["version"], arm["buckets"]) for arm in one["arms"]] == [
        ("ensemble", 1, [0, 5000]),
        ("student", 1, [5000, 10_000]),
    ]
    missing = client.get("/experiments/nobody")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_experiment")


def test_every_request_is_counted_under_its_route(client: TestClient):
    """Under the template, so that labels stay few; what is no route is `other`."""
    client.get("/experiments/nobody")
    client.get("/nonsense/1")
    client.put("/predict")
    client.post("/models/nobody/predict", json=request_of(1))
    text = client.get("/metrics").text

    assert metric(text, "retort_requests_total", route="/experiments/{name}", code="404") >= 1
    assert metric(text, "retort_requests_total", route="other", code="404") >= 1
    assert metric(text, "retort_requests_total", route="/predict", code="405") >= 1
    assert metric(text, "retort_requests_total", route=MODEL_ROUTE, code="404") >= 1
    assert metric(text, "retort_requests_total", route="/metrics", code="200") >= 0
    assert not re.search(r'route="/models/nobody', text)


def test_a_scrape_says_how_full_the_worker_is(repository: Path):
    """And whether it lets fewer in than there are places."""
    app = make_app(repository, max_in_flight=10)
    with TestClient(app) as client:
        wait_until_ready(client)
        calm = client.get("/metrics").text
        admission = app.predictor.admission
        admission.take(7)
        for run in range(2):
            app.predictor.queue.runs = run
            admission.note_refusal()
        crowded = client.get("/metrics").text

    assert metric(calm, "retort_admission_state") == 1
    assert metric(calm, "retort_places_taken") == 0
    assert metric(crowded, "retort_admission_state") == 2
    assert metric(crowded, "retort_places_taken") == 7


def test_the_metrics_are_in_the_text_format(client: TestClient):
    """With the version in the content type, as Prometheus asks."""
    reply = client.get("/metrics")

    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert metric(reply.text, "retort_model_info", model="student", version="1") == 1


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v2/models/a/infer", Target(INFER_ROUTE, "a")),
        ("/v2/models/a/versions/3/infer", Target(INFER_VERSION_ROUTE, "a", "3")),
        ("/v2/models//infer", None),
        ("/v2/models/a/b/infer", None),
        ("/v2/models/a/infer/", None),
        ("/models/a/infer", None),
    ],
)
def test_the_fast_path_takes_inferences_too(path: str, target: Target | None):
    """Everything else of /v2 is FastAPI's to route."""
    assert find_inference(path) == target
    assert find_target(path) is None


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/predict", Target("/predict")),
        ("/models/a/predict", Target(MODEL_ROUTE, "a")),
        ("/models/a/versions/3/predict", Target(VERSION_ROUTE, "a", "3")),
        ("/predict/", None),
        ("/models//predict", None),
        ("/models/a/b/predict", None),
        ("/models/a/versions/predict", None),
        ("/xmodels/a/predict", None),
    ],
)
def test_the_fast_path_takes_the_predict_routes_and_no_others(path: str, target: Target | None):
    """Everything else is FastAPI's to route."""
    assert find_target(path) == target
