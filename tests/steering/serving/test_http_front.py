"""The HTTP front: what OpenAI-compatible clients send, our edits, and every wrong input as one line of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import sys
import urllib.request

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import LLAMA_LIKE, peaky

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import train_bpe
from jax_interp.models import save
from jax_interp.models.generation.completion import continuation
from jax_interp.steering import SteeringVector
from jax_interp.steering.applying import save_vectors
from jax_interp.steering.serving import Request, RequestEdit, engine_of, serve
from jax_interp.steering.serving.http.app import Front, app_of
from jax_interp.steering.serving.http.wire import Limits
from jax_interp.steering.serving.worker import Busy, Stopped, Worker

TOKENIZER = train_bpe(["the cat sat on the mat, and the dog sat on the cat"] * 3, 270)
CONFIG = dataclasses.replace(
    LLAMA_LIKE, n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, d_mlp=24, vocab_size=TOKENIZER.vocab_size
)
VECTOR = np.random.default_rng(0).normal(size=16).astype(np.float32)
NAMED = {
    "calm": SteeringVector({"blocks.1.resid_post": jnp.asarray(VECTOR)}),
    "both": SteeringVector({f"blocks.{i}.resid_post": jnp.asarray(VECTOR) for i in range(2)}),
}
LIMITS = Limits(body_bytes=20_000, new_tokens=20, prompt_tokens=12, edits=3, waiting=4)


@pytest.fixture(scope="module")
def model():
    return peaky(CONFIG)


@pytest.fixture(scope="module")
def engine(model):
    return engine_of(model, rows=2, slots=24, steps=3)


@pytest.fixture(scope="module")
def client(engine):
    front = Front(Worker(engine, LIMITS.waiting), "small", TOKENIZER, NAMED, LIMITS)
    with TestClient(app_of(front), raise_server_exceptions=False) as client:
        client.worker = front.worker
        yield client


def asked(client, **fields):
    return client.post("/v1/completions", json={"prompt": "the cat", "max_tokens": 6, "temperature": 0} | fields)


def expected(model, prompt="the cat", n_new=6, edits=(), **draws):
    ids = TOKENIZER.encode(prompt, bos=True)
    (result,) = serve(model, [Request(ids, n_new, edits, stop=(TOKENIZER.bos_id,), **draws)], rows=2, slots=24, steps=3)
    return list(result.tokens), continuation(TOKENIZER, ids, result.tokens)


def test_a_completion_is_that_of_the_engine(client, model):
    answer = asked(client).json()
    tokens, text = expected(model)
    (choice,) = answer["choices"]
    assert (choice["tokens"], choice["text"], choice["finish_reason"]) == (tokens, text, "length")
    n = len(TOKENIZER.encode("the cat", bos=True))
    assert answer["usage"] == {"prompt_tokens": n, "completion_tokens": 6, "total_tokens": n + 6}
    assert (answer["object"], answer["model"]) == ("text_completion", "small")


def test_edits_are_numbers_or_names(client, model):
    edit = RequestEdit("blocks.1.resid_post", VECTOR, "rotate", 1.5, start=-1)
    fields = {"operator": "rotate", "strength": 1.5, "start": -1}
    tokens, _ = expected(model, edits=(edit,))
    assert tokens != expected(model)[0]
    for where in ({"layer": 1, "vector": VECTOR.tolist()}, {"vector": "calm"}, {"layer": 1, "vector": "both"},
                  {"address": "blocks.1.resid_post", "vector": "both"}):  # fmt: skip
        assert asked(client, edits=[where | fields]).json()["choices"][0]["tokens"] == tokens
    both = tuple(dataclasses.replace(edit, address=f"blocks.{i}.resid_post") for i in range(2))
    answer = asked(client, edits=[{"vector": "both"} | fields]).json()
    assert answer["choices"][0]["tokens"] == expected(model, edits=both)[0]


def test_a_stream_has_the_parts_of_the_whole_answer(client, model):
    tokens, text = expected(model, n_new=8, temperature=0.9, top_p=0.9, seed=5)
    response = asked(client, stream=True, max_tokens=8, temperature=0.9, top_p=0.9, seed=5)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    choices = [json.loads(event)["choices"][0] for event in events]
    assert done == "[DONE]"
    assert "".join(choice["text"] for choice in choices) == text
    assert [token for choice in choices for token in choice["tokens"]] == tokens
    assert [choice["finish_reason"] for choice in choices] == [None] * 7 + ["length"]


def test_a_stop_string_ends_the_text_before_it(client, model):
    _, text = expected(model, n_new=12)
    stop = text[3:5]
    answer = asked(client, max_tokens=12, stop=[stop, "never there"]).json()["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == (text[: text.index(stop)], "stop")
    streamed = asked(client, max_tokens=12, stop=stop, stream=True).text
    parts = [
        json.loads(line[6:])["choices"][0]["text"] for line in streamed.split("\n\n") if line.startswith("data: {")
    ]
    assert "".join(parts) == text[: text.index(stop)]


def test_models_and_health(client):
    assert client.get("/health").json() == {"status": "ok"}
    (one,) = client.get("/v1/models").json()["data"]
    assert (one["id"], one["vectors"]) == ("small", ["both", "calm"])


def test_prompts_can_be_token_ids_and_seeds_repeat(client):
    ids = TOKENIZER.encode("the cat", bos=True)
    draws = {"temperature": 2.0, "seed": 9}
    assert asked(client, prompt=ids, **draws).json()["choices"] == asked(client, **draws).json()["choices"]
    free = asked(client, temperature=2.0).json()
    again = asked(client, temperature=2.0, seed=free["seed"]).json()
    assert again["choices"] == free["choices"]


DEEP = "[" * 200 + "]" * 200
WRONG = {
    "no prompt": ({"prompt": None}, 400, "prompt is one text"),
    "two prompts": ({"prompt": ["a", "b"]}, 400, "prompt is one text"),
    "empty prompt": ({"prompt": []}, 400, "at least one token"),
    "long prompt": ({"prompt": [1] * 13}, 400, "at most 12"),
    "token id": ({"prompt": [99999]}, 400, "token id 99999"),
    "huge id": ({"prompt": [2**62]}, 400, "token id"),
    "many tokens": ({"max_tokens": 21}, 400, "at most 20"),
    "too long": ({"prompt": [1] * 12, "max_tokens": 20}, 400, "at most 24"),
    "no tokens": ({"max_tokens": 0}, 400, "n_new=0"),
    "a fraction": ({"max_tokens": 1.5}, 400, "whole number"),
    "temperature": ({"temperature": -1}, 400, "temperature"),
    "top_p": ({"top_p": "much"}, 400, "top_p"),
    "seed": ({"seed": 2**40}, 400, "seed"),
    "stop": ({"stop": ""}, 400, "stop is a string"),
    "stops": ({"stop": ["a"] * 5}, 400, "at most 4"),
    "stream": ({"stream": 1}, 400, "stream is true or false"),
    "n": ({"n": 3}, 400, "does not have n"),
    "logprobs": ({"logprobs": 5}, 400, "does not have logprobs"),
    "unknown": ({"promt": "a"}, 400, "no field 'promt'"),
    "model": ({"model": "../../etc/passwd"}, 404, "no model"),
    "edits": ({"edits": {"layer": 1}}, 400, "edits is a list"),
    "edit field": ({"edits": [{"layer": 1, "vector": "calm", "file": "x"}]}, 400, "no field 'file'"),
    "path": ({"edits": [{"layer": 1, "vector": "/etc/passwd"}]}, 400, "no vector '/etc/passwd' was loaded"),
    "layer": ({"edits": [{"layer": 7, "vector": [1.0] * 16}]}, 400, "names no layer"),
    "size": ({"edits": [{"layer": 1, "vector": [1.0] * 3}]}, 400, "has 3 entries"),
    "text in a vector": ({"edits": [{"layer": 1, "vector": ["1"] * 16}]}, 400, "list of numbers"),
    "no place": ({"edits": [{"vector": [1.0] * 16}]}, 400, "needs a layer or an address"),
    "two places": ({"edits": [{"layer": 1, "address": "blocks.1.resid_post", "vector": "calm"}]}, 400, "give one of"),
    "other value": ({"edits": [{"address": "blocks.1.mlp_out", "vector": [1.0] * 16}]}, 400, "can be at"),
    "operator": ({"edits": [{"layer": 1, "vector": "calm", "operator": "__import__"}]}, 400, "no operator"),
    "operator list": ({"edits": [{"layer": 1, "vector": "calm", "operator": ["add"]}]}, 400, "is a string"),
    "strength": ({"edits": [{"layer": 1, "vector": "calm", "strength": "2"}]}, 400, "strength"),
    "many edits": ({"edits": [{"layer": 1, "vector": "calm"}] * 4}, 400, "at most 3"),
    "NaN logits": ({"edits": [{"vector": "both", "strength": 3e38}]}, 422, "NaN"),
}  # fmt: skip
BODIES = {
    "not JSON": (b"{", 400, "not JSON"),
    "no object": (b"[1]", 400, "JSON object"),
    "NaN": (b'{"prompt": "a", "temperature": NaN}', 400, "JSON"),
    "deep": (DEEP.encode(), 400, "nested"),
    "twice": (b'{"prompt": "a", "prompt": "b"}', 400, "JSON"),
    "bytes": (b"\xff\xfe", 400, "JSON"),
    "large": (b" " * 20_001, 413, "20,000 bytes"),
}


def one_message(response, status, message):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in response.text


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields_are_one_message(client, case):
    fields, status, message = WRONG[case]
    one_message(asked(client, **fields), status, message)


def test_wrong_bodies_paths_and_methods_are_one_message(client):
    post = lambda body, kind="application/json": client.post(
        "/v1/completions", content=body, headers={"content-type": kind}
    )
    for body, status, message in BODIES.values():
        one_message(post(body), status, message)
    one_message(post(b'{"prompt": "a"}', "text/plain"), 415, "application/json")
    one_message(client.get("/v1/completions"), 405, "Method")
    one_message(client.get("/v1/../etc/passwd"), 404, "Not Found")
    assert asked(client).status_code == 200


def test_time_is_limited_and_the_row_is_free_again(engine):
    limits = dataclasses.replace(LIMITS, seconds=1e-6)
    front = Front(Worker(engine, 1), "small", TOKENIZER, NAMED, limits)
    with TestClient(app_of(front)) as client:
        one_message(asked(client), 408, "more than")
        assert '"code": 408' in asked(client, stream=True).text
        assert not front.worker._listeners


class Standing(Worker):
    """A worker whose thread does not run, so that its requests wait."""

    is_running = True


def test_waiting_requests_are_limited_and_cancelled_ones_free_their_place(engine):
    heard = []
    with pytest.raises(Stopped):
        Worker(engine, 1).submit(Request([1], 2), heard.append)
    worker = Standing(engine, 1)
    first = worker.submit(Request([1], 2), heard.append)
    with pytest.raises(Busy):
        worker.submit(Request([1], 2), heard.append)
    worker.cancel(first)
    worker.submit(Request([1], 2), heard.append)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_client_that_goes_away_frees_its_place(engine, stream, version):
    worker = Standing(engine, 4)
    app = app_of(Front(worker, "small", TOKENIZER, NAMED, LIMITS))
    body = json.dumps({"prompt": "the cat", "stream": stream}).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "http_version": "1.1",
             "headers": [(b"content-type", b"application/json")], "asgi": {"spec_version": version}}  # fmt: skip
    messages = [{"type": "http.request", "body": body}]

    async def receive():
        await asyncio.sleep(0.01)
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        if stream and version == "2.4" and not messages:
            raise OSError  # what a server does from this version on

    async def drive():
        with contextlib.suppress(Exception):
            await asyncio.wait_for(app(scope, receive, send), 5)
        await asyncio.sleep(0.01)

    asyncio.run(drive())
    assert not worker._listeners
    assert not worker._waiting


def test_a_stopped_server_ends_what_waits_with_an_error(engine):
    worker, heard = Worker(engine, 8), []
    worker.start()
    for _ in range(6):
        worker.submit(Request([1, 2], 20), heard.append)
    worker.stop()
    assert {event.id for event in heard if event.ending is not None} == set(range(6))
    with pytest.raises(Stopped):
        worker.submit(Request([1], 2), heard.append)


def test_wrong_options_of_the_command_are_errors():
    from jax_interp.cli.serve import run

    for arguments, message in (
        (["m", "--vectors", "calm"], "NAME=FILE"),
        (["m", "--vectors", "a=b", "a=c"], "twice"),
        (["m", "--rows", "0"], "rows=0"),
        (["m", "--port", "70000"], "port=70000"),
        (["m", "--host", "no such host"], "cannot listen"),
    ):
        with pytest.raises(UserError, match=message):
            run(arguments)


@pytest.mark.slow
def test_the_command_serves_on_a_socket_until_ctrl_c(model, tmp_path):
    save(model, tmp_path / "model", tokenizer=TOKENIZER)
    save_vectors(tmp_path / "calm.safetensors", NAMED["calm"])
    command = [sys.executable, "-m", "jax_interp.cli.main", "serve", str(tmp_path / "model"), "--port", "0",
               "--slots", "24", "--rows", "2", "--vectors", f"calm={tmp_path / 'calm.safetensors'}"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        url = re.search(r"http://\S+/v1", line)
        assert url, process.stderr.read()
        body = {"prompt": "the cat", "max_tokens": 6, "temperature": 0, "edits": [{"vector": "calm", "strength": 2}]}
        request = urllib.request.Request(
            f"{url[0]}/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        edit = RequestEdit("blocks.1.resid_post", VECTOR, strength=2)
        assert answer["choices"][0]["tokens"] == expected(model, edits=(edit,))[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""
    finally:
        process.kill()
