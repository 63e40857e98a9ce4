"""``usp-daemon snapshot``: what it prints, and the exit code a script can go by."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from snapshot_samples import GROUP, frame_by_hand, header_by_hand, sample
from usp_daemon import cli
from usp_daemon.persistence import FORMAT_VERSION, DirectoryStore, encode_snapshot


@pytest.fixture
def directory(tmp_path):
    """A store with three partitions, among them one with a snapshot set aside."""

    async def fill():
        async with DirectoryStore(tmp_path / "store", group=GROUP, observe_fn=lambda event: None) as store:
            for partition, offset in ((2, 5), (2, 9), (10, 7), (3, 1), (3, 2)):
                await store.acquire("ticks", partition)
                await store.save(sample(offset, partition=partition, num_symbols=1234))
            flip(file(tmp_path / "store", 3, 2))
            await store.newest("ticks", 3, 100)

    asyncio.run(fill())
    return tmp_path / "store"


def file(directory, partition, offset):
    (found,) = directory.rglob(f"ticks/{partition}/{offset:020d}.usp")
    return found


def flip(path, position=-100):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture
def run(capsys):
    def run_command(*arguments):
        capsys.readouterr()
        code = cli.run_command(["snapshot", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run_command


def test_list_shows_every_snapshot(directory, run):
    code, out, err = run("list", "--path", directory)
    assert (code, err) == (0, "")
    rows = [line.split("│") for line in out.splitlines() if "ticks/" in line and "│" in line]
    assert [(row[2].strip(), row[3].strip(), row[4].strip()) for row in rows] == [
        ("ticks/2", "5", "1,234"), ("ticks/2", "9", "1,234"), ("ticks/3", "1", "1,234"), ("ticks/3", "2", "1,234"),
        ("ticks/10", "7", "1,234"),
    ]  # fmt: skip
    assert rows[0][6].strip() == "2023-11-14 22:13:20"
    assert rows[3][8].strip() == "damaged"


def test_list_as_json(directory, run):
    flip(file(directory, 10, 7), 20)
    code, out, _ = run("list", "--path", directory, "--json")
    assert code == 0
    listed = json.loads(out)
    assert [entry.get("offset") for entry in listed] == [5, 9, 1, 2, None]
    assert listed[0] == {
        "file": str(file(directory, 2, 5)),
        "size_bytes": file(directory, 2, 5).stat().st_size,
        "is_set_aside": False,
        "problem": None,
        "group": GROUP,
        "topic": "ticks",
        "partition": 2,
        "offset": 5,
        "num_symbols": 1234,
        "created_ns": sample().created_ns,
        "config_hash": sample().config_hash,
        "format_version": FORMAT_VERSION,
    }
    assert listed[3]["is_set_aside"]
    assert "checksum" in listed[4]["problem"]


def test_list_goes_by_the_settings(directory, run, tmp_path, monkeypatch):
    config = tmp_path / "config.toml"
    config.write_text(f'[io]\nsnapshot_path = "{directory}"\n')
    code, out, _ = run("list", "--config", config, "--json")
    assert (code, len(json.loads(out))) == (0, 5)
    config.write_text("[io]\nsnapshot_path = 3\n")
    code, _, err = run("list", "--config", config)
    assert (code, "io.snapshot_path" in err) == (2, True)
    monkeypatch.chdir(tmp_path)
    code, _, err = run("list")
    assert (code, "io/snapshots" in err) == (3, True)  # the default, which is not there
    (tmp_path / "io" / "snapshots").mkdir(parents=True)
    code, out, _ = run("list")
    assert (code, "no snapshots below" in out) == (0, True)


def test_inspect_shows_the_header(directory, run):
    path = file(directory, 2, 9)
    code, out, err = run("inspect", path)
    assert (code, err) == (0, "")
    for text in ("ticks/2 of 12", "9 (the next record", "1,234", "cd" * 32, "epoch 4", "ab" * 32, "tile_width",
                 "2023-11-14 22:13:20", "model.weights", "<f8", "(1234, 4)", "38.6 KiB", GROUP):  # fmt: skip
        assert text in out
    assert "é" not in out  # no symbol is named
    code, out, _ = run("inspect", path, "--json")
    described = json.loads(out)
    assert (code, described["offset"], described["num_symbols"]) == (0, 9, 1234)
    assert described["settings"] == dict(sample().settings)
    assert described["arrays"][0] == {
        "path": "model.weights", "dtype": "<f8", "shape": [1234, 4], "offset": 0, "length": 1234 * 32
    }  # fmt: skip


def test_inspect_reads_what_is_set_aside_and_older_versions(directory, run, repository_root):
    (damaged,) = directory.rglob("*.damaged")
    assert run("inspect", damaged)[0] == 0  # its header is whole
    code, out, _ = run("inspect", repository_root / "tests/persistence/fixtures/version_0.usp")
    assert (code, "version 0 of 1" in out, "an unknown number" in out) == (0, True, True)


def test_no_secret_is_shown(tmp_path, run):
    """The daemon never writes one; a file made by somebody else might hold it."""
    settings = {"kafka.sasl_password": "hunter2", "some.future_api_key": "hunter2", "core.cusum_h": "auto"}
    header, body = header_by_hand(sample())
    path = tmp_path / "a.usp"
    path.write_bytes(frame_by_hand(FORMAT_VERSION, header | {"settings": settings}, body))
    for arguments in (("inspect", path), ("inspect", path, "--json"), ("list", "--path", tmp_path, "--json")):
        code, out, err = run(*arguments)
        assert code == 0
        assert "hunter2" not in out + err
    assert json.loads(run("inspect", path, "--json")[1])["settings"]["core.cusum_h"] == "auto"


def test_inspect_of_something_else(tmp_path, run):
    other, newer = tmp_path / "other", tmp_path / "newer"
    other.write_bytes(b"x" * 500)
    newer.write_bytes(frame_by_hand(FORMAT_VERSION + 1, b"", b""))
    for path, text in ((other, "damaged"), (newer, "newer than"), (tmp_path / "gone", "No such file"), (tmp_path, "")):
        code, out, err = run("inspect", path)
        assert (code, out) == (3, "")
        assert str(path) in err
        assert text in err


def test_verify(directory, run):
    code, out, _ = run("verify", directory)
    assert (code, out.count(": whole\n")) == (0, 4)
    assert "4 whole, 0 damaged or unreadable, 1 set aside before and not read" in out
    flip(file(directory, 2, 9))  # the body, which no other command reads
    assert run("inspect", file(directory, 2, 9))[0] == 0
    code, out, _ = run("verify", directory)
    assert code == 3
    assert f"{file(directory, 2, 9)}: damaged: the content does not match its SHA-256" in out
    assert "3 whole, 1 damaged" in out
    assert run("verify", file(directory, 2, 5), file(directory, 3, 1))[0] == 0
    assert run("verify", file(directory, 2, 5), file(directory, 2, 9))[0] == 3
    (set_aside,) = directory.rglob("*.damaged")
    assert run("verify", set_aside)[0] == 3


def test_verify_has_to_find_something(tmp_path, run):
    code, out, _ = run("verify", tmp_path)
    assert (code, "no snapshots found" in out) == (3, True)
    code, out, _ = run("verify", tmp_path / "gone")
    assert (code, "No such file" in out) == (3, True)
    newer = tmp_path / "newer"
    newer.write_bytes(frame_by_hand(FORMAT_VERSION + 1, b"", b""))
    code, out, _ = run("verify", newer)
    assert (code, "newer than" in out) == (3, True)


def test_nothing_is_changed(directory, run):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}

    flip(file(directory, 2, 9))
    before = state()
    for arguments in (("list", "--path", directory), ("inspect", file(directory, 2, 5)), ("verify", directory)):
        run(*arguments)
    assert state() == before


@pytest.mark.parametrize("arguments", [[], ["fly"], ["inspect"], ["verify"], ["list", "--path", "a", "--config", "b"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run_command(["snapshot", *arguments])
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_every_action_and_option_is_documented(repository_root):
    documentation = (repository_root / "docs" / "snapshots.md").read_text("utf-8")
    (commands,) = [action for action in cli.build_parser()._actions if action.dest == "command"]
    (actions,) = [action for action in commands.choices["snapshot"]._actions if action.dest == "action"]
    for name, parser in actions.choices.items():
        assert f"usp-daemon snapshot {name}" in documentation
        for option in (option for action in parser._actions for option in action.option_strings):
            assert option in ("-h", "--help") or f"`{option}" in documentation, option


def test_the_numerical_libraries_stay_out(tmp_path):
    """An operator who looks at a directory does not wait for JAX."""
    path = tmp_path / "a.usp"
    path.write_bytes(encode_snapshot(sample()))
    code = "import sys; from usp_daemon import cli; assert cli.run_command(['snapshot', 'verify', {!r}]) == 0"
    subprocess.run(
        [sys.executable, "-c", code.format(str(path)) + "; assert 'jax' not in sys.modules"],
        check=True,
        capture_output=True,
        cwd=Path(tmp_path),
        timeout=60,
    )


def test_verify_as_json(directory, run):
    code, out, err = run("verify", directory, "--json")
    found = json.loads(out)
    assert (code, err, found["is_whole"], found["num_set_aside"]) == (0, "", True, 1)
    assert len(found["files"]) == 4
    flip(file(directory, 10, 7))
    code, out, _ = run("verify", directory, "--json")
    (bad,) = [entry for entry in json.loads(out)["files"] if not entry["is_whole"]]
    assert (code, bad["file"]) == (3, str(file(directory, 10, 7)))
    assert bad["problem"]
