"""The store of the tests: each fault really happens to the client, and the log tells of it."""

import contextlib
import http.client

import pytest
from cocoseg.shards.config import ReadConfig
from cocoseg.shards.reader import BadSample, ShardSet
from cocoseg.storage import locate, stamps
from object_store import BUCKET, CORRUPT, FAULTS, READ_TIMEOUT, SIGNED, Request, Rule

CONTENT = bytes(range(256)) * 16
RANGE = CONTENT[100:356]


@pytest.fixture
def path(store):
    store.put("a.bin", CONTENT)
    return f"/{BUCKET}/a.bin"


def connection(store, timeout=None):
    client = http.client.HTTPConnection("127.0.0.1", store.proxy.port, timeout=timeout)
    return contextlib.closing(client)


def ask(store, path, method="GET", *, ranged=True):
    """Return status, stated length and body as a plain client has them; or how that failed."""
    headers = {"Authorization": SIGNED} | ({"Range": "bytes=100-355"} if ranged else {})
    with connection(store, READ_TIMEOUT) as client:
        try:
            client.request(method, path, headers=headers)
            answer = client.getresponse()
            stated = int(answer.getheader("Content-Length"))
        except OSError as error:
            return type(error)
        try:
            return answer.status, stated, answer.read()
        except (OSError, http.client.IncompleteRead) as error:
            return answer.status, stated, type(error)


def refusal(status, code):
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return status, len(text), text.encode()


HAPPENS = {
    "429": refusal(429, "TooManyRequests"),
    "500": refusal(500, "InternalError"),
    "503": refusal(503, "SlowDown"),
    "404": refusal(404, "NoSuchKey"),
    "416": refusal(416, "InvalidRange"),
    "denied": refusal(403, "AccessDenied"),
    "reset": ConnectionResetError,
    "reset in the body": (206, 256, ConnectionResetError),
    "short": (206, 128, RANGE[:128]),
    "cut": (206, 256, http.client.IncompleteRead),
    "slow": TimeoutError,
    "whole": (200, 4096, CONTENT),
    CORRUPT: (206, 256, bytes(b ^ 0xFF * (i % 64 == 0) for i, b in enumerate(RANGE))),
}


@pytest.mark.parametrize("fault", [*FAULTS, CORRUPT])
def test_a_fault_happens_as_often_as_its_rule_says(fault, store, path):
    store.proxy.rules.append(Rule(fault, path=r"a\.bin", skip=1, times=2))
    answers = [ask(store, path) for _ in range(4)]
    well = (206, 256, RANGE)
    assert answers == [well, HAPPENS[fault], HAPPENS[fault], well]
    wanted = "bytes=100-355"
    assert store.proxy.requests == [
        Request("GET", path, wanted, struck) for struck in (None, fault, fault, None)
    ]


@pytest.mark.parametrize("fault", ["reset in the body", "short", "cut", "whole", CORRUPT])
def test_a_head_does_not_use_up_a_fault_of_bodies(fault, store, path):
    rule = Rule(fault)
    store.proxy.rules.append(rule)
    assert ask(store, path, "HEAD", ranged=False) == (200, 4096, b"")
    assert rule.struck == 0
    assert ask(store, path) == HAPPENS[fault]
    assert rule.struck == 1


def test_a_refused_head_has_no_body(store, path):
    store.proxy.rules.append(Rule("503"))
    status, _, body = ask(store, path, "HEAD", ranged=False)
    assert (status, body) == (503, b"")


def test_a_rule_strikes_its_path_alone(store, path):
    store.proxy.rules.append(Rule("404", path="b.bin", times=None))
    store.put("b.bin", b"b")
    assert ask(store, path) == (206, 256, RANGE)
    assert ask(store, f"/{BUCKET}/b.bin", ranged=False) == HAPPENS["404"]
    assert store.proxy.count() == 2
    assert store.proxy.count("b.bin") == 1


def test_requests_on_their_way_are_counted(store, path):
    store.proxy.rules.append(Rule("slow"))
    with connection(store) as client:
        client.request("GET", path, headers={"Authorization": SIGNED})
        while not store.proxy.requests:  # the slow one has arrived
            pass
        assert ask(store, path) == (206, 256, RANGE)
        assert client.getresponse().read() == CONTENT
    assert store.proxy.most_in_flight >= 2


def test_the_condition_of_a_version_reaches_the_server(store, path):
    def ask_for(method, **condition):
        with connection(store) as client:
            client.request(method, path, headers={"Authorization": SIGNED, **condition})
            answer = client.getresponse()
            return answer.status, answer.getheader("ETag")

    _, tag = ask_for("HEAD")
    assert ask_for("GET", **{"If-Match": tag}) == (200, tag)
    store.put("a.bin", CONTENT[::-1])
    assert ask_for("GET", **{"If-Match": tag})[0] == 412


def test_what_is_written_passes_too(store):
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.pipe_file(f"{BUCKET}/written/a.bin", CONTENT)
    assert fs.cat_file(f"{BUCKET}/written/a.bin", start=100, end=356) == RANGE
    fs.rm(f"{BUCKET}/written/a.bin")
    assert not fs.exists(f"{BUCKET}/written/a.bin")
    assert store.proxy.count("written/a.bin", "PUT") == 1


@pytest.mark.parametrize("asked", [3, 25])  # one by one, and by a listing
def test_the_stamp_of_an_object_changes_with_its_content(asked, store):
    for i in range(25):
        store.put(f"many/{i}", CONTENT)
    urls = [f"s3://{BUCKET}/many/{i}" for i in range(asked)]
    requests = store.proxy.count()
    absent = [f"s3://{BUCKET}/gone", f"s3://{BUCKET}/absent/x"]
    before = stamps([*map(locate, urls), *map(locate, absent)])
    assert store.proxy.count() - requests <= asked + 8
    assert before[-2:] == ["", ""]
    assert all(before[:-2])
    store.put("many/1", CONTENT[::-1])
    after = stamps([*map(locate, urls)])
    assert [i for i in range(asked) if before[i] != after[i]] == [1]


@pytest.mark.parametrize("mode", ["cache", "range"])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_shard_damaged_on_the_way_is_fetched_again_or_told(
    mode, lasting, store, golden, tmp_path
):
    url = store.upload(golden.shards("train"), "train")
    shards = ShardSet([url], config=ReadConfig(remote=mode, cache_dir=str(tmp_path)))
    rule = Rule(CORRUPT, path=r"\.tar", times=None if lasting else 1)
    store.proxy.rules.append(rule)
    (sample,) = shards.read_many([0])
    assert rule.struck
    assert isinstance(sample, BadSample) == lasting
