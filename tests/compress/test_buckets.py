"""Stores in an object store: that of moto, which speaks S3, on this machine."""

import json
import logging
import urllib.request

import pytest
from moto.server import ThreadedMotoServer

from clara_jax.answer.__main__ import main as answer
from clara_jax.search import Store
from tests.compress.command_line import SMALL, error, run

PLACE = "s3://bucket/stores/wiki"


@pytest.fixture(scope="module")
def service():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(service, monkeypatch, tmp_path):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "us",
        "AWS_SECRET_ACCESS_KEY": "ours",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": service,
        "AWS_ALLOW_HTTP": "true",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    request = urllib.request.Request(f"{service}/bucket", method="PUT")
    urllib.request.urlopen(request).close()


def asked(capsys, *arguments):
    assert answer([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def named(found):
    return [(d["id"], d["part"], d["text"], d["metadata"]) for d in found["documents"]]


def test_a_store_is_written_searched_and_changed(bucket, model, corpus, whole, capsys):
    how = ("--model", model, "--corpus", corpus, *SMALL)
    make = (*how, "--store", PLACE)
    assert run(capsys, *make, "--part", "1/2")[0] == 0
    assert "is not finished" in error(capsys, "--store", PLACE, "--check")
    assert run(capsys, *make, "--part", "2/2")[0] == 0
    assert run(capsys, *make)[2].strip().endswith("there is nothing to do")
    here, there = Store.open(whole), Store.open(PLACE)
    assert there.pieces(there.ids) == here.pieces(here.ids)
    assert (there.vectors(there.ids) == here.vectors(here.ids)).all()

    assert run(capsys, "index", "--store", PLACE, "--words")[0] == 0
    question = "Ada Bell was born in Corin ?"
    local = asked(capsys, "--store", whole, question)
    for more in ((), ("--search", "exact"), ("--where", "year >= 0")):
        found = asked(capsys, "--store", PLACE, *more, "--model", model, question)
        if "--where" not in more:
            assert found["answer"] == local["answer"]
            assert named(found) == named(local)
    few = asked(
        capsys, "--store", PLACE, "--hybrid", "--where", "year in (3, 4)", question
    )
    assert {d["metadata"]["year"] for d in few["documents"]} <= {3, 4}

    assert run(capsys, "--store", PLACE, "--delete", "d1", "d3")[0] == 0
    assert run(capsys, *make, "--replace")[0] == 0
    assert run(capsys, "--store", PLACE, "--compact")[0] == 0
    status, out, _ = run(capsys, "--store", PLACE, "--check")
    assert status == 0 and f"{len(here)} pieces" in out
    assert "pieces" in run(capsys, "--store", PLACE, "--versions")[1]
    again = asked(capsys, "--store", PLACE, "--search", "exact", question)
    assert again["answer"] == local["answer"]


def test_what_is_not_there_is_one_line(bucket, model, corpus, capsys):
    line = error(capsys, "--store", "s3://bucket/none", "--check")
    assert "holds no store" in line
    how = ("--model", model, "--corpus", corpus, *SMALL)
    assert "s3://nowhere/x: " in error(capsys, *how, "--store", "s3://nowhere/x")
    assert "odd://x: " in error(capsys, *how, "--store", "odd://x")
