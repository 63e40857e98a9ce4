"""What the documentation tells people to type does what it says; what cannot be run here says why."""

import collections
import shutil
import socket
import uuid
from pathlib import Path

import msgspec
import pytest
from code_blocks import ROOT, Block, Shell, blocks_of, commands, pages, pattern_of

from usp_daemon.config import load_settings

BLOCKS = [block for page in pages() for block in blocks_of(page)]


def pages_with(need: str) -> list[str]:
    return sorted({block.page for block in BLOCKS if need in block.needs})


@pytest.fixture
def shell(tmp_path, request):
    """A shell for one page's blocks, in a directory with the configuration and some ticks."""
    directory = tmp_path / "here"
    (directory / "config").mkdir(parents=True)
    shutil.copy(ROOT / "config" / "config.toml", directory / "config" / "config.toml")
    lines = [f"{1_700_000_000 + i},{i % 7},s{i % 3}\n" for i in range(900)]
    (directory / "ticks.csv").write_text("ts,value,symbol\n" + "".join(lines))
    options = {}
    if "kafka_bootstrap_servers" in request.fixturenames:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        servers = request.getfixturevalue("kafka_bootstrap_servers")
        options = {"servers": servers, "port": port, "group": f"docs-{uuid.uuid4().hex[:8]}"}
    shell = Shell(directory, **options)
    yield shell
    shell.close()


def test_no_block_goes_unmarked():
    assert [str(block) for block in BLOCKS if not block.marker] == []


def test_what_is_not_run_is_counted_and_says_why(capsys):
    kinds = collections.Counter(block.marker.partition(":")[0] for block in BLOCKS)
    reasons = collections.Counter(block.why_not for block in BLOCKS if block.why_not)
    with capsys.disabled():
        print(f"\n{dict(kinds)}; not run: " + "; ".join(f"{count} {why}" for why, count in reasons.most_common()))
    assert kinds["run"] >= 14
    assert all(len(why) >= 10 for why in reasons)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.marker == "check"], ids=str)
def test_data_and_programs_that_are_shown_are_right(block: Block, tmp_path: Path):
    if block.language == "toml":
        path = tmp_path / "config.toml"
        path.write_text(block.text)
        load_settings(path, {})
    elif block.language == "json":
        msgspec.json.decode(block.text)
    else:
        assert block.language == "python", block
        compile(block.text, str(block), "exec")


@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS if b.marker == "run"}))
def test_commands_that_need_nothing(page: str, shell: Shell):
    for block in blocks_of(ROOT / page):
        if block.file or block.marker == "run":
            shell.run(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("slow"))
def test_commands_that_need_the_predictor(page: str, shell: Shell):
    for block in blocks_of(ROOT / page):
        if block.file or block.marker in ("run", "run: slow"):
            shell.run(block)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.parametrize("page", pages_with("kafka"))
def test_commands_that_need_a_broker(page: str, kafka_bootstrap_servers: str, shell: Shell):
    for block in blocks_of(ROOT / page):
        if block.file or block.marker == "run" or "kafka" in block.needs:
            shell.run(block)
        if "terminals" in block.needs:
            shell.wait_for("  80% [")


def test_shown_output_is_compared_as_it_is_meant():
    assert pattern_of("a ... c\n...\nd").search("x\na b c\n1\n2\nd\n")
    assert not pattern_of("a ... c\n...\nd").search("a b\n1\nd\n")
    assert not pattern_of("a").search("b\n")
    block = Block("p", 1, "console", "$ one \\\n  two\nout\n$ three\n", "run")
    assert list(commands(block)) == [("one \\\n  two", "out"), ("three", "")]
