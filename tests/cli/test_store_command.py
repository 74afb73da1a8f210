"""`jax-interp store`: a store is written, described and trained on by commands."""

from __future__ import annotations

from jax_interp.data.activation_store import open_activation_store

ADDRESS = "blocks.1.resid_pre"


def test_a_store_is_written_described_and_trained_on(command, model, text, run_json, tmp_path):
    directory = tmp_path / "acts"
    code, _, error = command("store", directory)
    assert code == 2
    assert "has no store: give --address to write one" in error
    asked = ("store", directory, "--model", model, "--text", text, "--address", ADDRESS, "--rows", 700, "--quiet")
    asked = (*asked, "--batch", 2, "--context", 16, "--shard-rows", 300)
    code, printed, error = command(*asked)
    assert code == 0, error
    assert [len(shard) for shard in open_activation_store(directory).shards] == [300, 300, 100]
    code, again, _ = command("store", directory, "--verify")
    assert code == 0
    for shown in (printed, again):
        assert "700 of 16 numbers, float16" in shown
        assert ADDRESS in shown
    assert "every file has its SHA-256" in again
    code, _, error = command(*asked[:-1], 200)
    assert code == 2
    assert "holds another store: shard_rows 300, not 200" in error

    train = ("train-dictionary", run_json, "--store", directory, "--run-dir", tmp_path / "run", "--quiet")
    code, _, error = command(*train)
    assert code == 0, error
    assert (tmp_path / "run/dictionary/dictionary.safetensors").is_file()
    code, _, error = command(*train, "--dictionary.address", "blocks.0.resid_pre", "--run-dir", tmp_path / "other")
    assert code == 2
    assert f"the store holds {ADDRESS}; the config asks for blocks.0.resid_pre" in error
    shard = directory / "shard-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7b")
    code, _, error = command("store", directory, "--verify")
    assert code == 2
    assert "shard-00001.npy was changed since it was written" in error
