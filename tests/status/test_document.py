"""What is served: documents that fit the schema, under strict headers, to those who may ask, with no secret in them."""

import asyncio
import http.client
import json

import jsonschema
import numpy as np
import pytest
from status_answers import ServerThread, answer
from test_board import FACTS, ONE, random_answers

from usp_daemon.config import SPECS, ReloadOutcome, ReloadReport, ReloadTrigger, Settings, document_of, parse_settings
from usp_daemon.daemon_status import StatusFacts, StatusObserver
from usp_daemon.service import Observer, Observers, ProgramEpoch
from usp_daemon.status import Board, Tuner, build_status, encode_status, schema, status_routes
from usp_daemon.status._page import page
from usp_daemon.status._routes import history_asked, is_host_known
from usp_daemon.telemetry import Health, HttpRequest, PartitionState
from usp_daemon.wire import ResultEncoder

SECRETS = [path for path, spec in SPECS.items() if spec.key.secret]
HIDE_ME = "hunter2-hunter2"


def check(document):
    jsonschema.validate(document, schema.json_schema(), cls=jsonschema.Draft202012Validator)


def filled(clock, num_symbols=20):
    board = Board(num_symbols, clock_fn=clock)
    observer = StatusObserver(board, clock_fn=clock)
    observer.partition_state(ONE, PartitionState.RUNNING)
    observer.lag(ONE, 3, int(clock.now * 1e9) - 2_000_000_000)
    observer.queued(ONE, 2, True)
    observer.symbols(ONE, 9)
    observer.snapshot_saved(ONE, 0.1, 10)
    answers, _ = random_answers(np.random.default_rng(1), [f"s{i}" for i in range(9)], 12, 60)
    observer.answered(ONE, answers)
    observer.answered(ONE, [answer([], [], [], reasons={"not_json": 4})])
    return board


def epoch_of(number, settings):
    return ProgramEpoch(
        number=number,
        settings=settings.predictor_values(),
        config_hash=settings.predictor_hash(),
        parameters=None,
        identity={},
        encoder=ResultEncoder(config_hash=""),
    )


def settings_with(**values):
    return parse_settings(
        document_of({path.replace("__", "."): value for path, value in values.items()}), source="test"
    )


@pytest.fixture
def server(clock):
    board = filled(clock)
    running = ServerThread(status_routes(board, lambda: FACTS, hosts=["usp.example"]))
    running.start()
    yield running
    running.close()


def ask(server, path, *, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        got = connection.getresponse()
        return got.status, got.headers, got.read()
    finally:
        connection.close()


def test_the_schema_file_is_the_one_of_the_code(repository_root):
    path = repository_root / "docs" / "schemas" / schema.SCHEMA_FILE
    assert path.read_bytes() == schema.schema_bytes(), "run: python -m usp_daemon.status.schema docs/schemas"
    jsonschema.Draft202012Validator.check_schema(schema.json_schema())


def test_documents_fit_the_schema(clock):
    check(json.loads(encode_status(build_status(Board(3, clock_fn=clock).view(), FACTS))))
    board = filled(clock)
    document = json.loads(encode_status(build_status(board.view(), FACTS)))
    check(document)
    assert (
        document["partitions"][0] | {"lag_records": 3, "lag_s": 2.0, "queued": 2, "paused": True, "symbols": 9}
        == (document["partitions"][0])
    )
    assert document["totals"]["dead_letters_by_reason"] == {"not_json": 4}
    broken = document | {"totals": document["totals"] | {"alarms": -1}}
    with pytest.raises(jsonschema.ValidationError):
        check(broken)


def test_numbers_that_are_not_finite_are_null(clock):
    board = Board(2, clock_fn=clock)
    infinite, nothing = float("inf"), float("nan")
    board.answered(ONE, [answer(["a"] * 3, [1, 2, 3], [nothing, infinite, 1e308], kurtosis=[infinite] * 3)])
    document = json.loads(encode_status(build_status(board.view(), FACTS)))
    check(document)
    assert document["symbols"][0]["history"]["value"] == [None, None, 1e308]
    assert document["symbols"][0]["kurtosis"] is None


def test_history_is_given_to_those_who_are_named(server):
    whole = json.loads(ask(server, "/status.json")[2])
    check(whole)
    assert all(each["history"] for each in whole["symbols"])
    some = json.loads(ask(server, "/status.json?history=0,3,99&else=1")[2])
    assert {each["id"] for each in some["symbols"] if each["history"]} == {0, 3}
    assert not any(each["history"] for each in json.loads(ask(server, "/status.json?history=none")[2])["symbols"])


@pytest.mark.parametrize("words", ["", "a", "1,", "-1", "1.5", "9" * 9, "%D9%A3", ",".join("1" * 1001)])
def test_other_ids_are_refused(server, words):
    assert ask(server, f"/status.json?history={words}")[0] == 400


def test_history_words():
    assert history_asked("") is None
    assert history_asked("history=all") is None
    assert history_asked("history=2,2,5") == {2, 5}


def test_only_get_and_head(server):
    status, headers, body = ask(server, "/status", method="HEAD")
    assert (status, body) == (200, b"") and int(headers["Content-Length"]) > 10_000
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/status.json", method=method)[0] == 405


def test_headers_let_nothing_in_and_nothing_out(server):
    _, headers, body = ask(server, "/status")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"].startswith("'sha256-") and "unsafe" not in headers["Content-Security-Policy"]
    text = body.decode()
    assert "@@" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    for path in ("/status", "/status.json", "/favicon.ico"):
        _, headers, _ = ask(server, path)
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
    assert page() is page()


@pytest.mark.parametrize(
    ("host", "is_known"),
    [("127.0.0.1:9108", True), ("localhost", True), ("LOCALHOST.:1", True), ("a.localhost", True), ("[::1]:9108", True),
     ("10.1.2.3", True), ("usp.example:80", True), ("evil.example", False), ("localhost.evil.example", False),
     ("127.0.0.1.evil.example", False), ("", False), ("[evil]", False), ("usp.example.evil", False)],
)  # fmt: skip
def test_a_name_that_a_stranger_pointed_here_is_refused(server, host, is_known):
    assert is_host_known(host, {"usp.example"}) is is_known
    for path in ("/status", "/status.json"):
        assert ask(server, path, Host=host)[0] == (200 if is_known else 421)
    assert is_host_known(host, {"*"})


def test_listens_on_loopback_by_default():
    assert Settings().http.host == "127.0.0.1"


def test_no_secret_stands_in_the_document(clock):
    assert len(SECRETS) >= 3
    settings = settings_with(
        **{path.replace(".", "__"): HIDE_ME for path in SECRETS if path.startswith("kafka.")},
        kafka__group=f"//user:{HIDE_ME}@group",
    )
    facts = StatusFacts(settings, Health(stall_timeout_s=60.0), instance="i", clock_fn=clock)
    facts.service.group = ""
    facts.epoch_adopted(epoch_of(1, settings))
    problem = f"storage postgresql://user:{HIDE_ME}@host/db is away"
    facts.record_reload(ReloadReport(1, ReloadTrigger.FILE, ReloadOutcome.REFUSED, 1, "h", problems=(problem,)))
    document = encode_status(build_status(Board(1, clock_fn=clock).view(), facts.facts()))
    check(json.loads(document))
    assert HIDE_ME.encode() not in document
    changes = {each["path"]: each for each in json.loads(document)["config"]["changes_to_defaults"]}
    assert changes["kafka.sasl_password"]["new"] == changes["kafka.sasl_password"]["old"] == "(hidden)"
    assert changes["kafka.group"]["new"] == "//(hidden)@group"


def test_configuration_epochs_and_health(clock):
    first = settings_with(http__port=9200)
    second = settings_with(http__port=9200, orchestration__cusum_k=0.75)
    health = Health(stall_timeout_s=60.0, clock_fn=clock)
    facts = StatusFacts(first, health, instance="i", clock_fn=clock)
    assert facts.facts().config is None
    facts.epoch_adopted(epoch_of(4, first))
    assert [each.path for each in facts.facts().config.changes_to_defaults] == ["http.port"]
    assert facts.facts().config.changes_to_last_epoch == []
    facts.record_reload(ReloadReport(1, ReloadTrigger.FILE, ReloadOutcome.APPLIED, 5, "h", seconds=0.5))
    clock.now += 10.0
    facts.epoch_adopted(epoch_of(5, second))
    found = facts.facts().config
    default = Settings().orchestration.cusum_k
    assert [(each.path, each.old, each.new) for each in found.changes_to_last_epoch] == [
        ("orchestration.cusum_k", default, 0.75)
    ]
    assert {each.path for each in found.changes_to_defaults} == {"http.port", "orchestration.cusum_k"}
    assert (found.epoch, found.config_hash) == (5, second.predictor_hash())
    assert found.last_reload.outcome == "applied" and facts.facts().service.uptime_s == 10.0
    assert not facts.facts().health.ready and "starting" in " ".join(facts.facts().health.reasons)
    facts.tuner_fn = lambda: Tuner(mode="propose", phase="campaign", trials=3, trials_total=50)
    check(json.loads(encode_status(build_status(Board(1).view(), facts.facts()))))


def test_hostile_names_are_plain_text_in_the_document(clock):
    names = ["</script><img src=x onerror=alert(1)>", "\u202e\x00\x1b[31m", "a" * 128, "\U0001f4a9"]
    board = Board(9, clock_fn=clock)
    board.answered(ONE, [answer(names, [1] * 4, [1.0] * 4)])
    document = json.loads(encode_status(build_status(board.view(), FACTS)))
    assert [each["symbol"] for each in document["symbols"]] == names


def test_several_observers_are_told_everything_in_order():
    told = []

    class Telling(Observer):
        def __init__(self, name):
            self.name = name

        def lag(self, partition, num_records, oldest_ns):
            told.append((self.name, partition, num_records, oldest_ns))

    both = Observers(Telling("a"), Observer(), Telling("b"))
    both.lag(ONE, 3, oldest_ns=None)
    both.stepping(True)
    assert told == [("a", ONE, 3, None), ("b", ONE, 3, None)]


def test_viewers_wait_for_each_other(clock):
    seen = []

    async def run():
        handler = status_routes(filled(clock), lambda: seen.append(1) or FACTS)["/status.json"]
        request = HttpRequest("/status.json", "", {"host": "localhost"})
        answers = await asyncio.gather(*(handler(request) for _ in range(5)))
        assert {each.status for each in answers} == {200}

    asyncio.run(run())
    assert len(seen) == 5
